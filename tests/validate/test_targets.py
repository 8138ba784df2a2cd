from dataclasses import replace

import pytest
import torch

from engines.backends import BACKENDS
from export.bundle import open_bundle
from export.errors import UserError
from export.records.engine_record import EngineRecord
from validate.cases.builtin import Profile
from validate.reference.sessions import ReferenceProbes
from validate.reference.targets import REFERENCE_TARGETS
from validate.run.reference import record_golden
from validate.run.validation import run_validation
from validate.targets import open_target, profile_of_engine


def plan_of(exported, dtype):
    bundle = open_bundle(exported.bundle)
    subject = open_target("torch", bundle, exported.plan.engine.profile, dtype)
    return replace(exported.plan, engine=subject.engine, probes=subject.probes, cases=exported.plan.cases[:1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_reference_in_a_half_type_passes_within_its_own_noise(exported, tmp_path, progress, dtype):
    report = run_validation(plan_of(exported, dtype), tmp_path / "workspace", progress)
    assert report.passed, report.failures
    assert report.subject.engine_dtype == dtype
    assert report.cases[0].noise is not None
    noise = report.cases[0].noise.tensors["visual_embeds"].worst_token_error
    assert noise > 1e-4  # a half type's, not float32's
    assert {gate.gate for gate in report.depth} == {"depth.vision", "depth.prefill", "depth.decode"}
    assert 0.1 < (report.cases[0].worst_ratio or 0.0) < 0.75


@pytest.mark.slow
def test_a_half_typed_engine_with_a_wrong_weight_is_found_at_its_op(exported, tmp_path, progress):
    plan = plan_of(exported, "bfloat16")

    class Damaged(ReferenceProbes):
        def _load(self):
            return damaged(super()._load())

    def damaged(model):
        weight = model.model.layers[1].mlp.gate_proj.weight
        weight.copy_(model.model.layers[0].mlp.gate_proj.weight)
        return model

    def open_damaged(num_slots, capacity):
        engine = plan.engine.open(num_slots, capacity)
        damaged(engine.decoder._model)
        return engine

    golden = tmp_path / "golden"
    record_golden(plan, golden, progress)
    engine = replace(plan.engine, open=open_damaged)
    probes = Damaged(exported.bundle, "bfloat16", "cpu")
    report = run_validation(
        replace(plan, engine=engine, probes=probes, golden=golden), tmp_path / "workspace", progress
    )
    assert not report.passed
    assert report.divergence is not None
    assert report.divergence.first is not None
    stage, error = report.divergence.first
    assert (stage, error.place) == ("prefill", "layers.1/mlp/gate_proj")


def refused():
    yield "onnxruntime", "bfloat16", "cannot compute in bfloat16"
    if not torch.cuda.is_available():
        yield "torch-cuda", None, "needs an NVIDIA GPU"
    yield "tensorrt-rtx", None, "has no engine for tensorrt-rtx. Build one: qv-export build"
    yield "tensorrt", "float16", "cannot compute in float16: its engines compute in the graphs' dtype"


@pytest.mark.parametrize(("target", "dtype", "words"), list(refused()))
def test_a_target_that_cannot_run_here_says_why(exported, target, dtype, words):
    assert target in BACKENDS or target in REFERENCE_TARGETS
    with pytest.raises(UserError, match=words):
        open_target(target, open_bundle(exported.bundle), Profile(), dtype)


def test_a_built_engine_narrows_the_profile_to_its_own_limits():
    limits = {
        "max_patches": 512,
        "max_segments": 8,
        "max_batch": 4,
        "max_prompt_tokens": 128,
        "max_context": 640,
        "max_logits_tokens": 32,
    }
    record = EngineRecord("k", {}, "tensorrt", (90,), limits, (), None, "2026", 1.0, (), {})
    assert profile_of_engine(record, Profile()) == Profile(640, 512, 3, 128, 8)
