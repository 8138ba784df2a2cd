"""What quantizing costs is measured and gated; the ways that are known to be too dear fail."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.backends.onnxruntime.session import open_sessions
from examples.tiny.evaluate import held_out
from examples.tiny.reference_sessions import CAPACITY
from export.bundle import open_bundle
from export.checkpoint.generation_config import load_generation_config
from export.errors import UserError
from export.processor.processor import Processor
from qv_export import api
from validate.execution import OpenEngine
from validate.gates.gates import COST_LIMITS, GateSettings, gate_kind
from validate.tasks.cost import ALL, QuantizationCost, Said, ask_unquantized, limits_of, measure_cost
from validate.tasks.quality import compare_quality
from validate.tasks.runs import TaskSet

CHECKPOINT = Path("models/qwen2-vl-tiny")
TASKS = ("read", "receipt")
PER_TASK = 8

needs_checkpoint = pytest.mark.skipif(
    not CHECKPOINT.exists(), reason="models/qwen2-vl-tiny is not in this checkout"
)


def cost_of(before, after, **changes):
    quality = compare_quality(before, after)
    cost = QuantizationCost(100, 0.01, 0.1, 0.9, {ALL: quality}, dict(COST_LIMITS))
    return replace(cost, **changes)


def failures(cost):
    return [(gate.gate, gate.subject) for gate in cost.gates if not gate.passed]


def test_a_loss_fails_once_it_is_certain():
    right = [True] * 200
    assert failures(cost_of(right, [False] * 2 + right[2:])) == []
    assert failures(cost_of(right, [False] * 30 + right[30:])) == [("cost.loss", ALL)]


def test_likelihoods_fail_by_their_own_limit():
    assert failures(cost_of([True] * 9, [True] * 9, kl_mean=0.2)) == [("cost.kl_mean", ALL)]


def test_limits_come_from_the_gates_file_and_a_looser_one_is_called_so(tmp_path):
    (tmp_path / "gates.toml").write_text('[limits]\n"cost.kl_mean" = 0.5\n"cost.different_text" = 0.05\n')
    settings = GateSettings.from_toml(tmp_path / "gates.toml")
    limits = limits_of(settings)
    assert limits == {"cost.loss": 0.01, "cost.kl_mean": 0.5, "cost.different_text": 0.05}
    cost = cost_of([True] * 9, [True] * 9, kl_mean=0.2, limits=limits)
    assert failures(cost) == [("cost.different_text", ALL)]
    assert gate_kind(settings, cost.gates) == "looser"


def test_an_unknown_gate_is_refused_with_the_known_ones(tmp_path):
    (tmp_path / "gates.toml").write_text('[limits]\n"cost.nothing" = 1\n')
    with pytest.raises(UserError, match=r"cost\.kl_mean"):
        GateSettings.from_toml(tmp_path / "gates.toml")


@pytest.fixture(scope="module")
def tasks():
    processor = Processor.from_directory(CHECKPOINT)
    samples = [sample for task in TASKS for sample in held_out(task, PER_TASK)]
    generation = replace(load_generation_config(CHECKPOINT), do_sample=False, max_new_tokens=40)
    return TaskSet(
        tuple(processor.inputs_from_messages(sample.messages()) for sample in samples),
        tuple(sample.answer for sample in samples),
        processor,
        generation,
        tuple(sample.task for sample in samples),
    )


@pytest.fixture(scope="module")
def unquantized(tasks, tmp_path_factory) -> tuple[Said, Path]:
    directory = tmp_path_factory.mktemp("unquantized")
    return ask_unquantized(tasks, CHECKPOINT, directory), directory


def measured(tasks, unquantized, bundle) -> QuantizationCost:
    sessions = open_sessions(open_bundle(bundle), num_slots=1, capacity=CAPACITY, num_threads=1)
    engine = OpenEngine(*sessions, tasks.processor.config)
    said, directory = unquantized
    return measure_cost(tasks, said, directory, engine, COST_LIMITS)


@pytest.mark.slow
@needs_checkpoint
def test_4_bits_in_the_decoder_pass_and_in_the_vision_encoder_fail(tasks, unquantized, tmp_path):
    costs = {}
    for vision in (None, "int4"):
        bundle = api.export(CHECKPOINT, tmp_path / str(vision), quantize="int4", quantize_vision=vision)
        costs[vision] = measured(tasks, unquantized, bundle.directory)
    sound, dear = costs[None], costs["int4"]
    assert failures(sound) == []
    assert ("cost.kl_mean", ALL) in failures(dear)
    assert set(sound.by_task) == {*TASKS, ALL}
    assert np.isfinite([sound.kl_mean, sound.kl_p99]).all()
    assert dear.kl_mean > 4 * sound.kl_mean > 0
