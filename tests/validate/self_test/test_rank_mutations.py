"""A decoder among ranks is validated as any other, and every fault of ranks fails its gate and is found where it is."""

from dataclasses import replace

import pytest

from tests.validate.self_test.test_mutations import _ANY
from validate.run.validation import run_validation
from validate.self_test.rank_mutations import rank_mutations

NAMES = [mutation.name for mutation in rank_mutations(_ANY, 2)]


def test_the_suite_has_six_faults_of_ranks_and_none_for_one():
    assert len(NAMES) >= 6
    assert rank_mutations(_ANY, 1) == []


def test_sound_ranks_pass_every_gate_and_no_value_inside_diverges(divided, tmp_path, progress):
    report = run_validation(divided.plan, divided.workspace(tmp_path), progress)
    assert report.passed, report.failures
    assert report.divergence is not None
    assert report.divergence.first is None
    assert max(gate.ratio or 0.0 for gate in report.gates) < 0.75


@pytest.mark.parametrize(
    "name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])]
)
def test_a_fault_of_ranks_fails_its_gate_and_is_found(name, divided, tmp_path, progress):
    fault = next(mutation for mutation in rank_mutations(divided.config, 2) if mutation.name == name)
    plan = replace(divided.mutated(fault, tmp_path / "mutated"), golden=divided.records)
    report = run_validation(plan, tmp_path / "workspace", progress)
    assert not report.passed
    assert fault.gate in {gate.gate for gate in report.failures}
    assert report.divergence is not None
    assert report.divergence.first is not None
    assert report.divergence.first[1].node == fault.node
