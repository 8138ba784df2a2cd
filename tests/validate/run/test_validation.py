import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from engines.session import Engine
from export.errors import UserError
from validate.cases.builtin import Case, Profile, Text
from validate.cases.prompts import prepare_case
from validate.execution import EngineUnderTest
from validate.report.render import markdown_from_report
from validate.run.reference import record_golden
from validate.run.validation import run_validation

INSIDE = "images_of_unequal_size.taps.npz"


def content(report):
    """The report without what differs between two runs of the same thing: where and when."""
    parts = json.loads(json.dumps(report.to_json()))
    del parts["machine"], parts["verdict"]["created"]
    return parts


class InterruptedRunError(Exception):
    pass


def interrupt_at(text):
    def progress(now, _done, _total):
        if now == text:
            raise InterruptedRunError

    return progress


@pytest.fixture(scope="module")
def whole(exported, tmp_path_factory):
    """The report of a run that nobody interrupted."""
    return run_validation(exported.plan, tmp_path_factory.mktemp("whole") / "workspace", lambda *_: None)


@pytest.mark.parametrize("moment", ["Reference: ragged_batch", "Engine: ragged_batch"])
def test_a_resumed_run_gives_the_report_of_an_uninterrupted_one(exported, whole, tmp_path, progress, moment):
    with pytest.raises(InterruptedRunError):
        run_validation(exported.plan, tmp_path / "workspace", interrupt_at(moment))
    resumed = run_validation(exported.plan, tmp_path / "workspace", progress, resume=True)
    assert resumed.machine.resumed
    assert content(resumed) == content(whole)


def test_a_resumed_run_measures_nothing_twice(exported, tmp_path, progress):
    workspace = exported.workspace(tmp_path)
    with pytest.raises(InterruptedRunError):
        run_validation(exported.plan, workspace, interrupt_at("Looking inside"))

    def open_again(_num_slots, _capacity):
        raise AssertionError("everything was measured")

    plan = replace(exported.plan, engine=replace(exported.plan.engine, open=open_again))
    assert run_validation(plan, workspace, progress, resume=True).passed


def test_another_run_is_not_resumed(exported, tmp_path, progress):
    workspace = exported.workspace(tmp_path)
    with pytest.raises(InterruptedRunError):
        run_validation(exported.plan, workspace, interrupt_at("Engine: properties"))
    other = replace(exported.plan, num_decode_steps=5)
    with pytest.raises(UserError, match="differs in num_decode_steps"):
        run_validation(other, workspace, progress, resume=True)


def test_a_golden_set_takes_the_place_of_the_reference(exported, whole, tmp_path, progress):
    plan = replace(exported.plan, golden=exported.records)
    report = run_validation(plan, tmp_path / "workspace", progress)
    assert report.passed
    assert [case.measured for case in report.cases] == [case.measured for case in whole.cases]
    assert report.subject.reference == "golden set records, float64"
    assert report.divergence is not None
    assert whole.divergence is not None
    # The golden set keeps 64 numbers a token: errors by depth are estimates, of the same values.
    for projected, exact in zip(report.divergence.traces, whole.divergence.traces, strict=True):
        assert [error.node for error in projected.by_depth] == [error.node for error in exact.by_depth]
        for estimate, error in zip(projected.by_depth, exact.by_depth, strict=True):
            assert error.noise / 2 <= estimate.noise <= 2 * error.noise


def test_a_golden_set_without_an_inside_still_judges(exported, tmp_path, progress):
    golden = shutil.copytree(exported.records, tmp_path / "golden", ignore=lambda *_: [INSIDE])
    report = run_validation(replace(exported.plan, golden=golden), tmp_path / "workspace", progress)
    assert report.passed
    assert report.divergence is None
    assert not report.depth


def test_a_golden_set_of_other_cases_is_refused(exported, tmp_path, progress):
    case = prepare_case(Case("new", ((Text(4),),)), exported.config, exported.plan.image_settings)
    plan = replace(exported.plan, golden=exported.records, cases=(case,))
    with pytest.raises(UserError, match="no record of the case 'new'"):
        run_validation(plan, tmp_path / "a", progress)
    changed = replace(case, name="ragged_batch")
    with pytest.raises(UserError, match="a record of other inputs"):
        run_validation(replace(plan, cases=(changed,)), tmp_path / "b", progress)


def test_a_golden_set_of_another_model_is_refused(exported, tmp_path, progress):
    golden = tmp_path / "golden"
    record_golden(replace(exported.plan, cases=exported.plan.cases[:1]), golden, progress)
    text = (golden / "golden.json").read_text()
    model = json.loads(text)["model"]
    (golden / "golden.json").write_text(text.replace(model, "another"))
    with pytest.raises(UserError, match="model is 'another', this run needs"):
        run_validation(replace(exported.plan, golden=golden), tmp_path / "workspace", progress)


def test_a_directory_that_is_no_golden_set_is_left_alone(exported, tmp_path, progress):
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(UserError, match="no golden set"):
        record_golden(exported.plan, tmp_path, progress)
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_a_case_outside_of_the_profile_is_reported_as_such(exported, tmp_path, progress):
    long = prepare_case(Case("too_long", ((Text(300),),)), exported.config, exported.plan.image_settings)
    plan = replace(exported.plan, cases=(*exported.plan.cases, long))
    report = run_validation(plan, exported.workspace(tmp_path), progress)
    outside = next(case for case in report.cases if case.name == "too_long")
    assert report.passed
    assert outside.status == "outside_profile"
    assert "300 tokens and 6 decode steps exceed the context of 256" in outside.problem
    assert not outside.gates
    told = report.outside_sentence()
    assert told is not None
    assert "1 of 3 cases are larger than this engine takes, and were not asked: too_long." in told
    assert told.endswith("An engine built with --max-context 306 takes them.")
    assert told in markdown_from_report(report)


def test_a_run_without_any_case_inside_is_no_pass(exported, tmp_path, progress):
    tiny = replace(exported.plan.engine, profile=Profile(8, 4, 1))
    with pytest.raises(UserError, match=r"No case lies inside[^$]*ragged_batch: a prompt of"):
        run_validation(replace(exported.plan, engine=tiny), tmp_path / "workspace", progress)


class Failing:
    """A decoder that raises on batches, and answers in another shape else."""

    num_slots, capacity = 4, 256

    def forward(self, _first_slot, inputs):
        if len(inputs.token_ids) > 1:
            raise RuntimeError("out of workspace")
        return np.zeros((1, inputs.logits_index.shape[1], 7), np.float32)


def test_an_engine_that_raises_or_answers_in_another_shape_fails(exported, tmp_path, progress):
    def open_failing(num_slots, capacity):
        return Engine(exported.plan.engine.open(num_slots, capacity).vision, Failing())

    engine = EngineUnderTest("failing", "float32", exported.plan.engine.profile, open_failing)
    report = run_validation(replace(exported.plan, engine=engine), exported.workspace(tmp_path), progress)
    problems = {case.name: case.problem for case in report.cases}
    assert problems["ragged_batch"] == "RuntimeError: out of workspace"
    assert "expected" in problems["images_of_unequal_size"]
    assert {"runs", "batch_invariance"} <= {gate.gate for gate in report.failures}
    assert not report.passed
