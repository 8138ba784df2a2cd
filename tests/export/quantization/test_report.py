"""Which products stay unquantized for their errors, and what is said of all."""

import json

import pytest

from export.errors import UserError
from export.quantization.report import (
    REPORT_FILE,
    ProductError,
    QuantizationReport,
    read_report,
    worst_within,
)


def products(*errors_and_bytes, kept=()):
    return tuple(
        ProductError(f"model.layers.{i}.weight", "int4", error, True, size, i in kept)
        for i, (error, size) in enumerate(errors_and_bytes)
    )


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.1, {"model.layers.2.weight"}),
        (0.3, {"model.layers.2.weight", "model.layers.3.weight"}),
        (0.5, {"model.layers.1.weight"}),  # and the others have no room left
        (0.99, {"model.layers.1.weight", "model.layers.2.weight", "model.layers.3.weight"}),
    ],
)
def test_the_largest_errors_that_have_room_are_kept(share, expected):
    some = products((0.01, 30), (0.3, 50), (0.2, 10), (0.1, 10))
    assert worst_within(some, share) == expected
    assert worst_within(some[::-1], share) == expected


def test_a_share_that_keeps_nothing_is_refused_with_the_least_that_does():
    with pytest.raises(UserError, match=r"keeps none: the smallest of 2 products has 25"):
        worst_within(products((0.1, 30), (0.2, 10)), 0.2)


def test_what_is_written_is_read(tmp_path):
    report = QuantizationReport(products((0.01, 30), (0.3, 50), kept={1}))
    report.write(tmp_path)
    assert read_report(tmp_path) == report
    assert report.sentence() == (
        "2 products, error 1.0% in the middle, at most 30.0% (model.layers.1); "
        "the worst 1 stay as they were, 62.5% of the bytes"
    )


def test_a_bundle_without_a_report_has_none(tmp_path):
    assert read_report(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    ["[]", '{"products": []}', '{"products": [{}]}', '{"products": [1]}', "{", '{"products": 7, "more": 1}'],
)
def test_a_file_that_no_export_wrote_is_refused(tmp_path, content):
    (tmp_path / REPORT_FILE).write_text(content)
    with pytest.raises(UserError, match=REPORT_FILE):
        read_report(tmp_path)


@pytest.mark.parametrize("error", [-1, "x", None])
def test_an_error_that_is_no_size_is_refused(tmp_path, error):
    QuantizationReport(products((0.01, 30))).write(tmp_path)
    content = json.loads((tmp_path / REPORT_FILE).read_text())
    content["products"][0]["error"] = error
    (tmp_path / REPORT_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match="error must be"):
        read_report(tmp_path)
