"""On a GPU: engines built there, through the validator's cases, with the CUDA graph and the cache in place."""

import shutil
from dataclasses import replace

import pytest

from engines.backends import backend_of
from engines.backends.tensorrt.library import TENSORRT_TARGETS
from engines.gpus import gpu_facts
from engines.sizing.limits import Limits
from engines.store.build import build_engine_directory
from engines.store.cache import EngineRequest
from export.bundle import open_bundle
from tests.validate.conftest import PROFILE
from validate.run.validation import run_validation
from validate.targets import open_target


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.parametrize("target", TENSORRT_TARGETS)
def test_the_validators_cases_pass_on_an_engine_built_here(exported, tmp_path, progress, target):
    gpus = gpu_facts()
    backend = backend_of(target)
    if missing := backend.missing():
        pytest.skip(missing)
    if not backend.serves(gpus[0].sm):
        pytest.skip(f"{target} builds no engine for {gpus[0].name}, SM{gpus[0].sm}")
    shutil.copytree(exported.bundle, tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    limits = Limits(
        max_patches=PROFILE.max_patches,
        max_segments=16,
        max_batch=PROFILE.max_batch + 1,  # the slot that slot reuse is compared with
        max_context=PROFILE.max_context_tokens,
    )
    request = EngineRequest(backend, limits, backend.architectures((), lambda: gpus))
    build_engine_directory(bundle, request, gpus, 1, lambda *_: None)
    subject = open_target(target, bundle, PROFILE)
    plan = replace(exported.plan, engine=subject.engine, probes=subject.probes)
    report = run_validation(plan, exported.workspace(tmp_path), progress)
    assert report.passed
