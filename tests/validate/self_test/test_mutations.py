"""Every fault of the suite must turn the verdict, fail the gate it names and be found at the op it was put into."""

from dataclasses import replace

import pytest

from export.checkpoint.config import DecoderConfig, ModelConfig, VisionConfig
from validate.run.validation import run_validation
from validate.self_test.mutations import mutations

# Only names are read from this: the suite itself is made for the bundle's own sizes.
_ANY = ModelConfig(
    VisionConfig(2, 64, 2, 4, 3, 14, 2, 2, 128),
    DecoderConfig(512, 128, 192, 3, 4, 2, 32, 1e-6, 1e6, (4, 6, 6), True, 32768),
    *(508, 509, 506, 507),
    "float32",
)
NAMES = [mutation.name for mutation in mutations(_ANY)]


def test_the_sound_engine_passes_every_gate(exported, tmp_path, progress):
    report = run_validation(exported.plan, exported.workspace(tmp_path), progress)
    assert report.passed, report.failures
    assert {gate.gate for gate in report.depth} == {"depth.vision", "depth.prefill", "depth.decode"}
    assert report.divergence is not None
    assert report.divergence.first is None
    # Well below 1: a limit that a sound engine only just meets would fail on another machine.
    assert max(gate.ratio or 0.0 for gate in report.gates) < 0.75


@pytest.mark.parametrize("name", NAMES)
def test_a_mutation_fails_its_gate_and_is_found_with_a_golden_set(name, exported, tmp_path, progress):
    check(name, replace(mutated(name, exported, tmp_path), golden=exported.records), tmp_path, progress)


@pytest.mark.parametrize("name", ["yarn_frequencies_ignored", "yarn_temperature_ignored"])
def test_half_of_yarn_that_is_lost_is_found(name, stretched, tmp_path, progress):
    assert not set(NAMES) & {"yarn_frequencies_ignored", "yarn_temperature_ignored"}
    check(name, replace(mutated(name, stretched, tmp_path), golden=stretched.records), tmp_path, progress)


def test_a_sound_engine_with_yarn_passes_every_gate(stretched, tmp_path, progress):
    report = run_validation(stretched.plan, stretched.workspace(tmp_path), progress)
    assert report.passed, report.failures
    assert report.divergence is not None
    assert report.divergence.first is None


@pytest.mark.parametrize("name", ["patch_axes_swapped", "float16_product", "stale_cache_entry"])
def test_a_mutation_is_found_with_the_reference(name, exported, tmp_path, progress):
    exported.workspace(tmp_path)
    check(name, mutated(name, exported, tmp_path), tmp_path, progress)


def mutated(name, exported, directory):
    mutation = next(mutation for mutation in mutations(exported.config) if mutation.name == name)
    return exported.mutated(mutation, directory / "mutated")


def check(name, plan, directory, progress):
    mutation = next(mutation for mutation in mutations(plan.config) if mutation.name == name)
    report = run_validation(plan, directory / "workspace", progress)
    assert not report.passed
    assert mutation.gate in {gate.gate for gate in report.failures}
    assert report.divergence is not None
    assert report.divergence.first is not None
    assert report.divergence.first[1].node == mutation.node


def test_the_mildest_mutation_is_far_above_its_limit(exported, tmp_path, progress):
    mildest = next(m for m in mutations(exported.config) if m.name == "float16_product")
    report = run_validation(
        exported.mutated(mildest, tmp_path / "mutated"), exported.workspace(tmp_path), progress
    )
    ratios = [gate.ratio or 0.0 for gate in report.failures if gate.gate == mildest.gate]
    assert max(ratios) > 4
