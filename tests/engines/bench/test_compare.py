"""Two reports side by side: what is a loss, what is noise, and what must not be compared at all."""

from dataclasses import replace

import pytest

from engines.bench.compare import compare, losses, new_rows, require_comparable
from engines.bench.report import BenchReport, BenchRow, BenchSubject
from export.errors import UserError

SUBJECT = BenchSubject("a CPU", 2, (), "onnxruntime", "1.32.0", "e1", "b1", 8, 2048)


def row(median, low, high, case="32 tokens", *, more_is_better=False):
    return BenchRow("prefill", case, median, low, high, "ms", 9, more_is_better)


def report(*rows, sections=("prefill",)):
    return BenchReport(1, "2026-01-01T00:00:00+00:00", "0", SUBJECT, sections, 0.0, 0.0, (), rows, ())


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        (row(10, 9, 11), row(13, 12, 14), "LOSS"),
        (row(10, 9.9, 10.1), row(10.5, 10.4, 10.6), "worse"),  # by less than is a loss
        (row(10, 9, 12.5), row(13, 12, 14), "same"),  # the middle halves overlap
        (row(10, 9, 11), row(8, 7.9, 8.1), "better"),
        (row(10, 9, 11, more_is_better=True), row(8, 7.9, 8.1, more_is_better=True), "LOSS"),
        (row(10, 9, 11, more_is_better=True), row(13, 12, 14, more_is_better=True), "better"),
        (row(0, 0, 0), row(1, 1, 1), "same"),  # nothing can be said in percent of nothing
    ],
)
def test_a_loss_is_worse_than_stated_and_than_its_own_noise(before, now, verdict):
    [found] = compare(report(before), report(now), 0.1)
    assert found.verdict == verdict
    assert bool(losses([found])) == (verdict == "LOSS")


def test_the_loss_of_a_rate_is_what_it_takes_longer():
    [found] = compare(
        report(row(10, 10, 10, more_is_better=True)), report(row(8, 8, 8, more_is_better=True)), 0
    )
    assert found.loss == pytest.approx(0.25)


def test_what_could_not_be_measured_any_more_is_no_pass_and_what_was_not_asked_for_is_no_loss():
    before = report(row(1, 1, 1), row(2, 2, 2, "64 tokens"))
    found = compare(before, report(row(1, 1, 1)), 0.1)
    assert [one.verdict for one in found] == ["same", "MISSING"]
    assert [one.case for one in losses(found)] == ["64 tokens"]
    assert compare(before, report(sections=("decode",)), 0.1) == []
    assert [one.case for one in new_rows(report(row(1, 1, 1)), before)] == ["64 tokens"]


def test_other_machines_engines_and_settings_are_refused_with_every_difference():
    require_comparable(SUBJECT, SUBJECT)
    other = replace(SUBJECT, cpu="another CPU", engine="e2", num_threads=1)
    with pytest.raises(UserError, match="compare-anyway") as refused:
        require_comparable(SUBJECT, other)
    for word in ("a CPU", "another CPU", "e1", "e2", "num_threads"):
        assert word in str(refused.value)
