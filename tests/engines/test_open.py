from dataclasses import replace
from pathlib import Path

import pytest

from engines.gpus import GpuFacts
from engines.machine import Machine
from engines.open import choose_engine
from engines.sizing.limits import Limits
from export.bundle import Bundle
from export.errors import UserError
from export.records.engine_record import EngineRecord
from tests.engines.store.test_cache import REQUEST, write_engine
from tests.export.bundle_samples import make_weights, write_bundle

L4 = GpuFacts("NVIDIA L4", "580.65.06", (8, 9), 23034)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", make_weights(tmp_path / "model.safetensors"))


def built(bundle: Bundle, max_batch: int, max_context: int, sms: tuple[int, ...] = (80, 89)) -> EngineRecord:
    limits = Limits(max_batch=max_batch, max_context=max_context)
    return write_engine(bundle, replace(REQUEST, limits=limits, sms=sms))


def machine_of(record: EngineRecord) -> Machine:
    version = record.inputs["tensorrt-rtx-cu13-libs"]
    return Machine({"onnxruntime": None, "tensorrt-rtx": version, "tensorrt": None}, (L4,))


def chosen(
    bundle: Bundle, choice: str, num_slots: int, capacity: int, machine: Machine
) -> EngineRecord | None:
    return choose_engine(bundle, choice, num_slots=num_slots, capacity=capacity, machine=machine).record


@pytest.mark.tensorrt
def test_the_smallest_engine_that_is_large_enough_is_chosen(bundle: Bundle) -> None:
    built(bundle, 1, 512)
    wanted, _ = built(bundle, 1, 1024), built(bundle, 1, 4096)
    built(bundle, 1, 600, sms=(120,))  # of another GPU
    assert chosen(bundle, "tensorrt-rtx", 1, 600, machine_of(wanted)) == wanted


@pytest.mark.tensorrt
def test_engines_that_are_too_small_are_told_with_the_one_to_build(bundle: Bundle) -> None:
    record = built(bundle, 1, 512)
    with pytest.raises(UserError) as caught:
        chosen(bundle, "tensorrt-rtx", 2, 600, machine_of(record))
    message = str(caught.value)
    assert f"{record.key}: its max_batch is 1, asked are 2; its max_context is 512, asked are 600" in message
    assert "--target tensorrt-rtx --max-batch 2 --max-context 600" in message


@pytest.mark.tensorrt
def test_one_engine_of_another_gpu_is_told_as_such(bundle: Bundle) -> None:
    record = built(bundle, 1, 512, sms=(120,))
    with pytest.raises(UserError, match=r"built for SM120, this GPU is NVIDIA L4, SM89\n"):
        chosen(bundle, "tensorrt-rtx", 1, 512, machine_of(record))


@pytest.mark.tensorrt
def test_a_truncated_engine_is_not_chosen(bundle: Bundle) -> None:
    record = built(bundle, 1, 512)
    (bundle.directory / "engines" / record.key / "vision.engine").write_bytes(b"an")
    with pytest.raises(UserError, match=r"vision\.engine has 2 bytes, recorded were 9"):
        chosen(bundle, "tensorrt-rtx", 1, 512, machine_of(record))


def test_no_engine_at_all_names_the_command(bundle: Bundle) -> None:
    with pytest.raises(UserError, match=r"has no engine for tensorrt\. Build one: qv-export build"):
        chosen(bundle, "tensorrt", 1, 512, Machine({}, ()))
