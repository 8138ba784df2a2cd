import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from engines import packages
from engines.backends import backend_of
from engines.gpus import GpuFacts
from examples.random_checkpoint import write_checkpoint
from export.errors import UserError
from export.exporter import export_checkpoint
from export.install import install_command
from export.records.engine_record import read_engine_record
from qv_export.cli import run_command_line
from qv_export.show.build import note_lines, warning_lines

ROOT = Path(__file__).resolve().parents[3]
H100 = GpuFacts("NVIDIA H100", "580.65.06", (9, 0), 81559)
L4 = GpuFacts("NVIDIA L4", "580.65.06", (8, 9), 23034)
SMALL = ("--max-patches", "256", "--max-segments", "4", "--max-batch", "2", "--max-context", "128")
RTX = ("--target", "tensorrt-rtx", "--sm", "89", *SMALL)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("build")
    write_checkpoint(directory / "checkpoint", dtype="bfloat16")
    export_checkpoint(directory / "checkpoint", directory / "bundle")
    return directory / "bundle"


@pytest.fixture
def build(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `qv-export build` in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = run_command_line(["build", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def start(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "qv_export", "build", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


# Real builds


@pytest.mark.tensorrt
def test_a_build_killed_in_the_middle_leaves_the_cache_whole_and_the_next_one_builds(
    bundle: Path, build: Any
) -> None:
    process = start(bundle, *RTX, "--jobs", 2)
    wait_for_compiler(process)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = [path.name for path in (bundle / "engines").iterdir()]
    assert any(".writing-" in name for name in left)
    assert all(name.startswith(".") for name in left)
    assert build(bundle, *RTX, "--check")[0] == 1
    wait_until_gone(workers)

    code, out, err = build(bundle, *RTX, "--jobs", 2, "--json")
    assert code == 0, err
    content = json.loads(out)
    assert content["is_new"]
    assert [path.name for path in (bundle / "engines").iterdir()] == [content["key"]]
    directory = Path(content["engine"])
    assert sorted(path.name for path in directory.iterdir()) == [
        "decoder.engine",
        "engine.json",
        "vision.engine",
    ]
    record = read_engine_record(directory)
    assert list(record.changed_files(directory, read=True)) == []
    assert record.sms == (89,)
    assert record.limits["max_context"] == 128
    assert record.facts["decoder"]["ops"]["QvCachedAttention"] == "native"


def wait_for_compiler(process: "subprocess.Popen[str]") -> None:
    """Until both engines are being compiled, each in a child process."""
    assert process.stderr is not None
    for line in process.stderr:
        if "vision: starting" in line:
            break
    deadline = time.monotonic() + 60
    while len(children(process.pid)) < 2:
        assert time.monotonic() < deadline, "the build ended before it began"
        time.sleep(0.02)
    time.sleep(0.3)


def children(pid: int) -> list[int]:
    """Of all its threads."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in lists for child in path.read_text(encoding="ascii").split()]


def wait_until_gone(pids: list[int]) -> None:
    """A compiler whose parent was killed would go on for minutes."""
    deadline = time.monotonic() + 10
    while any(state(pid) != "Z" for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived the build"
        time.sleep(0.05)


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@pytest.mark.tensorrt
def test_a_second_build_does_nothing_in_under_a_second(bundle: Path, build: Any) -> None:
    assert build(bundle, *RTX)[0] == 0
    program = """
import sys, time
from qv_export.cli import run_command_line
code = run_command_line(sys.argv[1:])
print(code, time.process_time(), *sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "build", bundle, *RTX],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    code, seconds, *modules = done.stdout.split()
    assert code == "0"
    assert "nothing to do" in done.stderr
    assert float(seconds) < 1  # of the processor: other work on this machine must not fail a test
    assert not {"torch", "onnx", "onnxruntime", "numpy", "tensorrt_rtx_bindings"} & set(modules)


@pytest.mark.tensorrt
def test_the_plan_bounds_what_the_build_took(bundle: Path, build: Any) -> None:
    _, out, _ = build(bundle, *RTX, "--json")
    facts = json.loads(out)["facts"]
    code, out, _ = build(bundle, *RTX, "--plan", "--json")
    assert code == 0
    for graph in json.loads(out)["graphs"]:
        built = facts[graph["name"]]
        assert max(built["activation_bytes"]) <= graph["activation_bytes"]
        assert built["engine_bytes"] <= graph["engine_bytes"]
        assert built["peak_rss_bytes"] <= graph["build_ram_bytes"]
        # The decoder's constants of the rotary embedding and the like come on top of the weights.
        assert built["weights_bytes"] == pytest.approx(graph["weights_bytes"], rel=0.05, abs=100_000)


@pytest.mark.tensorrt
def test_check_says_what_would_be_built_and_why(bundle: Path, build: Any) -> None:
    build(bundle, *RTX)
    assert build(bundle, *RTX, "--check")[0] == 0
    code, out, _ = build(bundle, *RTX, "--max-batch", 1, "--check")
    assert code == 1
    assert "would be built (limit max_batch: built 2, wanted 1)" in out
    code, out, _ = build(bundle, *RTX, "--max-batch", 1, "--check", "--json")
    content = json.loads(out)
    assert (code, content["up_to_date"], content["inputs"]["limit max_batch"]) == (1, False, "1")


@pytest.mark.tensorrt
def test_a_disk_that_is_full_in_the_middle_is_one_message_and_leaves_nothing(bundle: Path) -> None:
    before = listing(bundle)

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    process = start(bundle, *RTX, "--max-batch", 1, preexec_fn=limit_files)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert "No space left" in err
    assert "Traceback" not in err
    assert listing(bundle) == before


def listing(bundle: Path) -> list[Path]:
    return sorted(bundle.rglob("*"))


def test_onnxruntime_is_opened_and_recorded(bundle: Path, build: Any) -> None:
    code, out, err = build(bundle, "--target", "onnxruntime", *SMALL, "--json")
    assert code == 0, err
    content = json.loads(out)
    assert content["files"] == []
    assert content["facts"]["vision"]["ops"] == {"QvPatchAttention": "native", "QvRotary": "decomposed"}
    assert content["facts"]["decoder"]["inputs"][0]["name"] == "token_ids"
    assert build(bundle, "--target", "onnxruntime", *SMALL, "--check")[0] == 0


# Limits and plans


def test_pictures_give_the_limits_that_are_not_given(bundle: Path, build: Any, tmp_path: Path) -> None:
    for width in (280, 560, 840):
        Image.new("RGB", (width, 280)).save(tmp_path / f"{width}.png")
    arguments = ("--target", "tensorrt-rtx", "--sm", 89, "--profile-from", tmp_path, "--plan")
    code, out, err = build(bundle, *arguments, "--max-batch", 3, "--json")
    assert code == 0, err
    content = json.loads(out)
    assert content["limits"]["max_patches"] == 1280  # 60 x 20 = 1,200
    assert content["limits"]["max_batch"] == 3
    assert content["pictures"]["num_pictures"] == 3
    code, _, err = build(bundle, *arguments)
    assert "3 pictures" in err
    assert "largest 1200 patches, 300 tokens" in err
    assert "--max-patches 1280" in err


def test_a_plan_that_does_not_fit_exits_with_1_and_a_build_with_2(bundle: Path, build: Any) -> None:
    arguments = (bundle, *RTX, "--max-batch", 1, "--gpu-memory", 0.001)
    code, out, _ = build(*arguments, "--plan")
    assert code == 1
    assert "does not fit: GPU memory to run" in out
    code, _, err = build(*arguments)
    assert code == 2
    assert err.startswith("error: This build does not fit (--force tries all the same)")


# Bad input


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--target", "tensorrt-rtx", "--sm", 90), "SM90: TensorRT-RTX builds for 75, 80, 86, 89, 120, 121"),
        (("--target", "tensorrt-rtx", "--sm", 100, "--sm", 70), "SM70"),
        (("--target", "onnxruntime", "--sm", 89), "--sm is for TensorRT"),
        (("--target", "onnxruntime", "--weight-streaming"), "--weight-streaming is for TensorRT"),
        (("--target", "tensorrt-rtx", "--sm", 89, "--timing-cache", "times"), "a timing cache is TensorRT's"),
        (("--target", "tensorrt-rtx", "--sm", 89, "--max-patches", 0), "max_patches must be a whole number"),
        (("--target", "tensorrt-rtx", "--sm", 89, "--max-context", 10**6), "exceeds the 32768 tokens"),
        (("--target", "tensorrt-rtx", "--sm", 89, "--profile-from", "plugins/rotary"), "no picture found"),
    ],
)
def test_what_cannot_be_built_is_one_message_with_a_remedy(
    bundle: Path, build: Any, arguments: tuple[object, ...], said: str
) -> None:
    code, out, err = build(bundle, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_what_is_no_bundle_is_told_so(tmp_path: Path, build: Any) -> None:
    code, _, err = build(tmp_path, "--target", "tensorrt-rtx")
    assert code == 2
    assert "is not a bundle" in err


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        ([], install_command("rtx")),
        (["tensorrt"], "tensorrt is installed: --target tensorrt builds with that"),
    ],
)
def test_a_missing_library_is_told_with_its_installation(
    bundle: Path, build: Any, monkeypatch: pytest.MonkeyPatch, installed: list[str], said: str
) -> None:
    from engines.backends.tensorrt import library

    monkeypatch.setattr(library, "has_module", lambda name: name in installed)
    monkeypatch.setattr(packages, "installed_version", lambda name: "11.4" if name == "tensorrt" else None)
    monkeypatch.setattr(library, "find_spec", lambda name: name in installed or None)
    code, _, err = build(bundle, *RTX)
    assert code == 2
    assert said in err


def test_tensorrt_without_a_gpu_names_the_other_way(bundle: Path, build: Any) -> None:
    if os.access("/dev/nvidia0", os.R_OK):
        pytest.skip("has a GPU")
    code, _, err = build(bundle, "--target", "tensorrt")
    assert code == 2
    assert "--target tensorrt-rtx, which builds on any CPU" in err


def test_architectures_come_from_what_is_asked_then_from_the_machine() -> None:
    assert backend_of("tensorrt-rtx").architectures((120, 80), lambda: (L4,)) == (80, 120)
    assert backend_of("tensorrt-rtx").architectures((), lambda: (L4, H100)) == (89,)
    assert backend_of("tensorrt-rtx").architectures((), lambda: ()) == (80, 86, 89, 120)
    assert backend_of("tensorrt").architectures((), lambda: (H100,)) == (90,)
    assert backend_of("onnxruntime").architectures((), lambda: (H100,)) == ()


def test_tensorrt_builds_for_the_gpu_at_hand_only() -> None:
    with pytest.raises(UserError, match="found SM90 here, asked was SM89"):
        backend_of("tensorrt").architectures((89,), lambda: (H100,))


def test_only_warnings_that_ask_for_something_are_shown():
    warnings = [
        {"message": "Insufficient workspace", "count": 2},  # of a record that an older qv-export wrote
        {"message": "Kernel missing", "count": 1, "is_expected": False},
        {"message": "Make sure input token_ids has Int64 binding.", "count": 4, "is_expected": True},
    ]
    record: Any = SimpleNamespace(facts={"decoder": {"warnings": warnings}})
    assert warning_lines(record) == [
        "warning: decoder, 2 times: Insufficient workspace",
        "warning: decoder, 1 times: Kernel missing",
    ]


def test_what_is_unusual_about_an_engine_is_said_once():
    record: Any = SimpleNamespace(facts={"vision": {"warnings": []}, "decoder": {"notes": ["folded"]}})
    assert note_lines(record) == ["note: decoder: folded"]


def test_a_plan_without_a_card_says_on_which_ones_it_fits(
    bundle: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.gpus.gpu_facts", list)
    code, out, _ = build(bundle, *RTX, "--plan")
    assert code == 0
    assert "fits on cards of 8 GB and more" in out
    assert "fits on cards" not in build(bundle, *RTX, "--plan", "--gpu-memory", "12")[1]
    assert "fits on cards" not in build(bundle, "--target", "onnxruntime", "--plan")[1]
    assert json.loads(build(bundle, *RTX, "--plan", "--json")[1])["smallest_card_gb"] == 8


def test_a_division_among_gpus_is_proposed_with_reasons(build, bundle):
    plan = (bundle, "--target", "tensorrt-rtx", "--sm", "89", "--plan", "--gpu-memory", "24")
    code, out, _ = build(*plan, "--gpus", "2")
    assert code == 0
    assert "proposed: 2 copies, undivided" in out
    code, out, _ = build(*plan, "--gpus", "2", "--json")
    told = json.loads(out)
    assert [(one["ranks"], one["stages"]) for one in told["divisions"]] == [(1, 1), (1, 2), (2, 1)]
    assert told["proposed"]["replicas"] == 2
    code, _, problem = build(bundle, "--target", "tensorrt-rtx", "--sm", "89", "--gpus", "2")
    assert code == 2
    assert "--gpus proposes a division" in problem
