"""The self-test says of each fault whether the engine under test, with it, would have been let pass."""

from dataclasses import replace

import pytest

from engines.session import EngineError
from export.errors import UserError
from tests.validate.conftest import PROFILE
from validate.gates.gates import GateSettings
from validate.self_test.mutations import mutations
from validate.self_test.run import FaultResult, run_self_test


@pytest.fixture
def plan(exported):
    return replace(exported.plan, golden=exported.records)


def faults(plan, *names):
    return [mutation for mutation in mutations(plan.config) if mutation.name in names]


def test_faults_in_graphs_and_in_feeds_are_caught_on_a_sound_engine(plan, progress):
    result = run_self_test(plan, progress, faults(plan, "patch_axes_swapped", "segment_boundary_dropped"))
    assert result.passed
    assert result.sound_failures == ()
    assert [(fault.name, fault.outcome) for fault in result.faults] == [
        ("patch_axes_swapped", "caught"),
        ("segment_boundary_dropped", "caught"),
    ]
    assert all(fault.gate in fault.detail for fault in result.faults)
    assert result.to_json()["faults"][0]["outcome"] == "caught"


def test_gates_that_let_a_fault_pass_are_told_so(plan, progress):
    blind = replace(plan, gates=GateSettings(multiple=1e12))
    result = run_self_test(blind, progress, faults(plan, "wrong_epsilon"))
    assert not result.passed
    assert [fault.name for fault in result.named("missed")] == ["wrong_epsilon"]


def test_a_fault_that_the_engine_refuses_is_not_called_caught(plan, progress, monkeypatch):
    def refuse(*_arguments, **_options):
        raise EngineError("no kernel for that")

    monkeypatch.setattr("validate.self_test.run.mutate_engine", refuse)
    (fault,) = run_self_test(plan, progress, faults(plan, "tokens_shifted")).faults
    assert (fault.outcome, fault.detail) == ("not made", "no kernel for that")


def test_an_engine_that_is_wrong_already_proves_nothing(plan, exported, tmp_path, progress):
    (fault,) = faults(plan, "tokens_shifted")
    wrong = replace(plan, engine=exported.mutated(fault, tmp_path / "mutated").engine)
    result = run_self_test(wrong, progress, [])
    assert not result.passed
    assert fault.gate in result.sound_failures


def test_the_reference_has_no_graphs_to_put_faults_into(plan, progress):
    with pytest.raises(UserError, match="Give another --target"):
        run_self_test(replace(plan, chosen=None), progress, [])


def test_an_engine_too_small_for_the_cases_is_refused(plan, progress):
    small = replace(plan, engine=replace(plan.engine, profile=replace(PROFILE, max_patches=16)))
    with pytest.raises(UserError, match="leave neither"):
        run_self_test(small, progress, [])


@pytest.mark.parametrize(
    ("outcome", "detail", "sentence"),
    [
        ("caught", "a, packing, z", "caught: f, what: packing and 2 more"),
        ("caught", "runs", "caught: f, what: runs"),
        ("missed", "", "missed: f, what"),
        ("not made", "no kernel", "not made: f, what: no kernel"),
    ],
)
def test_a_fault_is_told_in_one_line_with_the_gate_that_was_made_for_it(outcome, detail, sentence):
    assert FaultResult("f", "what", "packing", outcome, detail).sentence() == sentence
