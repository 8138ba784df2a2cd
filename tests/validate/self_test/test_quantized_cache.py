"""A KV cache in 8 bits passes as what it means, and scales that are mixed up do not."""

from dataclasses import replace

import pytest

from tests.validate.conftest import export_and_record
from validate.run.validation import run_validation
from validate.self_test.mutations import mutations
from validate.self_test.run import run_self_test


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return export_and_record(tmp_path_factory, {"dtype": "float32"}, kv_cache="int8")


def test_a_sound_engine_passes_every_gate(cached, tmp_path, progress):
    report = run_validation(cached.plan, cached.workspace(tmp_path), progress)
    assert report.passed, report.failures
    assert report.divergence is not None
    assert report.divergence.first is None


def test_scales_that_are_exchanged_are_caught(cached, progress):
    (fault,) = (item for item in mutations(cached.config) if item.name == "cache_scales_exchanged")
    result = run_self_test(replace(cached.plan, golden=cached.records), progress, [fault])
    assert [(found.name, found.outcome) for found in result.faults] == [(fault.name, "caught")]
    assert fault.gate in result.faults[0].detail
    assert result.passed


def test_records_of_another_cache_do_not_fit(cached, exported):
    assert cached.plan.golden_content()["model"] != exported.plan.golden_content()["model"]
