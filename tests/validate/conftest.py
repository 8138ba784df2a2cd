"""One exported random checkpoint, and what the reference says about a few of its cases."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from export.bundle import open_bundle
from export.checkpoint.config import ModelConfig, load_config
from export.models.configuration import KvCachePrecision
from export.processor.settings import load_settings
from tests.support.bundles import shared_bundle
from validate.cases.builtin import Profile, make_level
from validate.cases.prompts import prepare_case
from validate.gates.gates import GateSettings
from validate.run.plan import Plan
from validate.run.reference import record_golden
from validate.self_test.mutated import MutatedProbes, mutate_bundle, mutate_engine
from validate.self_test.mutations import Mutation
from validate.targets import open_target

PROFILE = Profile(max_context_tokens=256, max_patches=256, max_batch=3)
CASE_NAMES = ("images_of_unequal_size", "ragged_batch")
NUM_DECODE_STEPS = 6


@dataclass(frozen=True)
class Exported:
    """A bundle and the way to validate it."""

    bundle: Path
    config: ModelConfig
    plan: Plan
    records: Path
    """The reference's part, recorded once."""

    def workspace(self, directory: Path) -> Path:
        """A workspace in which the reference has already spoken."""
        shutil.copytree(self.records, directory / "workspace" / "records")
        return directory / "workspace"

    def mutated(self, mutation: Mutation, scratch: Path) -> Plan:
        """The plan with a fault in the engine and nowhere else."""
        directory = mutate_bundle(self.bundle, mutation, scratch)
        subject = open_target("onnxruntime", open_bundle(directory), PROFILE)
        assert subject.probes is not None
        return replace(
            self.plan,
            engine=mutate_engine(subject.engine, mutation, self.config),
            probes=MutatedProbes(subject.probes, mutation, self.config),
        )


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_and_record(tmp_path_factory, {"dtype": "float32"})


@pytest.fixture(scope="session")
def stretched(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The same of a model with YaRN, stretched from so few tokens that every case goes beyond them."""
    yarn = {"factor": 4.0, "original_max_position_embeddings": 16}
    return export_and_record(tmp_path_factory, {"dtype": "float32", "yarn": yarn})


@pytest.fixture(scope="session")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Of a decoder among two ranks, whose 509 tokens do not divide."""
    checkpoint = {"dtype": "float32", "vocab_size": 509}
    return export_and_record(tmp_path_factory, checkpoint, tensor_parallel=2)


def export_and_record(
    tmp_path_factory: pytest.TempPathFactory,
    checkpoint: dict[str, Any],
    kv_cache: KvCachePrecision | None = None,
    tensor_parallel: int = 1,
) -> Exported:
    directory = tmp_path_factory.mktemp("validate")
    bundle = open_bundle(
        shared_bundle(tmp_path_factory, checkpoint, kv_cache=kv_cache, tensor_parallel=tensor_parallel)
    )
    config, (settings, _) = load_config(bundle.directory), load_settings(bundle.directory)
    cases = [case for case in make_level("quick", PROFILE).cases if case.name in CASE_NAMES]
    subject = open_target("onnxruntime", bundle, PROFILE)
    plan = Plan(
        bundle=bundle,
        config=config,
        image_settings=settings,
        engine=subject.engine,
        probes=subject.probes,
        engine_key=subject.key,
        chosen=subject.chosen,
        is_narrow=subject.is_narrow,
        level="quick",
        cases=tuple(prepare_case(case, config, settings) for case in cases),
        num_decode_steps=NUM_DECODE_STEPS,
        gates=GateSettings(),
    )
    record_golden(plan, directory / "records", quiet())
    return Exported(bundle.directory, config, plan, directory / "records")


def quiet() -> Callable[[str, float, float], None]:
    """Nobody watches the progress of a test."""
    return lambda _text, _done, _total: None


@pytest.fixture
def progress() -> Callable[[str, float, float], None]:
    return quiet()
