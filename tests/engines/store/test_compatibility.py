from dataclasses import replace
from pathlib import Path

import pytest

from engines.backends import BACKENDS
from engines.backends.tensorrt.backend import serves_architecture
from engines.gpus import GpuFacts
from engines.machine import Machine
from engines.store.compatibility import require_loadable
from export.errors import UserError
from export.records.engine_record import EngineRecord
from plugins.registry import known_plugins

BUNDLE = Path("my bundle")
L4 = GpuFacts("NVIDIA L4", "580.65.06", (8, 9), 23034)
H100 = GpuFacts("NVIDIA H100", "580.65.06", (9, 0), 81559)
MACHINE = Machine({"onnxruntime": "1.32.0", "tensorrt-rtx": "1.7.1.116", "tensorrt": None}, (L4,))
RECORD = EngineRecord(
    key="0123456789abcdef",
    inputs={"bundle": "b", "target": "tensorrt-rtx", "tensorrt-rtx-cu13-libs": "1.7.1.116"},
    target="tensorrt-rtx",
    sms=(80, 89),
    limits={"max_batch": 4, "max_context": 1024},
    plugins=(),
    driver=None,
    created="2026-01-01T00:00:00+00:00",
    seconds=1.0,
    files=(),
    facts={},
)
TENSORRT = replace(
    RECORD,
    target="tensorrt",
    inputs={"bundle": "b", "tensorrt-cu13": "11.4.0.106"},
    sms=(89,),
    driver="590.1",
    plugins=tuple(sorted(known_plugins())),
)
GPU_MACHINE = Machine({"onnxruntime": None, "tensorrt-rtx": None, "tensorrt": "11.4.0.106"}, (L4,))


def problems(
    record: EngineRecord = RECORD, machine: Machine = MACHINE, key: str = "b", plugins: tuple[str, ...] = ()
) -> str:
    try:
        require_loadable(record, BUNDLE, key, machine, frozenset(plugins or known_plugins()))
    except UserError as error:
        return str(error)
    return ""


def test_an_engine_loads_where_everything_is_as_it_was_built_for() -> None:
    assert problems() == ""
    newer = replace(L4, driver="590.1")
    assert problems(TENSORRT, replace(GPU_MACHINE, gpus=(newer,))) == ""


@pytest.mark.parametrize(
    ("record", "machine", "said"),
    [
        (
            RECORD,
            replace(MACHINE, versions={**MACHINE.versions, "tensorrt-rtx": "1.8.0.1"}),
            "built with tensorrt-rtx 1.7.1.116, installed is 1.8.0.1",
        ),
        (RECORD, replace(MACHINE, gpus=(H100,)), "built for SM80, SM89, this GPU is NVIDIA H100, SM90"),
        (
            RECORD,
            replace(MACHINE, gpus=(replace(L4, driver="570.1"),)),
            "needs driver 580 or newer (CUDA 13), this one is 570.1",
        ),
        (TENSORRT, GPU_MACHINE, "built under driver 590.1, this older one is 580.65.06"),
        (RECORD, GPU_MACHINE, "tensorrt is installed, which is another library and reads no such engine"),
        (
            replace(TENSORRT, plugins=("qv::QvRotary/2",)),
            GPU_MACHINE,
            (
                "holds plugins qv::QvRotary/2, this qv-export knows qv::QvCachedAttentionCombine/1, "
                "qv::QvCachedAttentionPartials/1, qv::QvPatchAttention/1, qv::QvRotary/1"
            ),
        ),
        (
            replace(RECORD, inputs={**RECORD.inputs, "bundle": "old"}),
            MACHINE,
            "built from bundle old, the bundle's key is b",
        ),
    ],
)
def test_a_difference_is_named_with_the_command_that_builds_again(
    record: EngineRecord, machine: Machine, said: str
) -> None:
    message = problems(record, machine)
    assert said in message
    assert f"qv-export build 'my bundle' --target {record.target}" in message
    assert "--max-batch 4 --max-context 1024" in message


def test_all_differences_come_at_once() -> None:
    machine = replace(MACHINE, versions={**MACHINE.versions, "tensorrt-rtx": "1.6"}, gpus=(H100,))
    assert problems(RECORD, machine, key="other").count("\n- ") == 3


def test_every_gpu_that_a_stage_may_go_to_must_serve_it() -> None:
    one = replace(RECORD, facts={"vision": {}, "decoder": {}})
    two = replace(RECORD, facts={"vision": {}, "decoder.0": {}, "decoder.1": {}})
    mixed = replace(MACHINE, gpus=(L4, H100))
    assert problems(one, mixed) == ""
    assert "this GPU is NVIDIA H100, SM90" in problems(two, mixed)
    assert problems(two, replace(MACHINE, gpus=(L4, L4, H100))) == ""


def test_an_engine_of_one_stage_needs_one_gpu_that_serves_it_wherever_it_is() -> None:
    one = replace(RECORD, facts={"vision": {}, "decoder": {}})
    assert problems(one, replace(MACHINE, gpus=(H100, L4))) == ""
    assert "this GPU is NVIDIA H100, SM90" in problems(one, replace(MACHINE, gpus=(H100, H100)))


def test_the_command_builds_for_the_gpu_that_is_here() -> None:
    t4 = GpuFacts("Tesla T4", "580.65.06", (7, 5), 15360)
    assert "--target tensorrt-rtx --sm 75 --max-batch 4" in problems(machine=replace(MACHINE, gpus=(t4,)))


def test_onnxruntime_needs_no_gpu() -> None:
    record = replace(RECORD, target="onnxruntime", sms=(), inputs={"bundle": "b", "onnxruntime": "1.32.0"})
    assert problems(record, replace(MACHINE, gpus=())) == ""


@pytest.mark.parametrize(
    ("level", "sm", "expected"),
    [
        ("none", 89, True),
        ("none", 90, False),
        ("same_compute_capability", 90, False),
        ("ampere_plus", 90, True),
        ("ampere_plus", 75, False),
    ],
)
def test_an_engine_serves_what_its_compatibility_says(level: str, sm: int, expected: bool) -> None:
    record = replace(TENSORRT, inputs={"option hardware_compatibility": level})
    assert serves_architecture(record, sm) == expected


def test_every_target_names_a_package_that_tells_its_version() -> None:
    assert {name: backend.distributions[0] for name, backend in BACKENDS.items()} == {
        "onnxruntime": "onnxruntime",
        "onnxruntime-cuda": "onnxruntime-gpu",
        "tensorrt-rtx": "tensorrt-rtx-cu13-libs",
        "tensorrt": "tensorrt-cu13",
    }


def test_without_a_gpu_the_way_out_is_another_machine_and_not_another_build() -> None:
    said = problems(RECORD, replace(MACHINE, gpus=()))
    assert "needs an NVIDIA GPU of SM80, SM89; `nvidia-smi` lists none" in said
    assert "on a machine with an NVIDIA GPU of SM80 or SM89" in said
    assert "qv-export build" not in said
