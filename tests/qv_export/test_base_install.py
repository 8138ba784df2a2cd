import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.base_install import ROOT, base_distributions, in_base_install, make_base_install
from tests.support.bundles import shared_bundle

STREET = ROOT / "examples" / "pictures" / "street.png"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base_install(tmp_path_factory.mktemp("base") / "packages")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_bundle(tmp_path_factory, {"dtype": "float32"})


def test_the_base_asks_for_nothing_that_only_an_export_needs() -> None:
    assert not set(base_distributions()) & {"torch", "onnxscript", "onnx-ir", "safetensors", "triton"}


def test_the_base_runs(packages: Path, bundle: Path) -> None:
    question = ["--image", STREET, "--prompt", "What?", "--max-new-tokens", "3", "--json"]
    done = in_base_install(packages, "run", bundle, *question)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_new_tokens"] == 3


def test_the_base_inspects(packages: Path, bundle: Path, tmp_path: Path) -> None:
    done = in_base_install(packages, "inspect", bundle / "vision.onnx", "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").stat().st_size
    assert in_base_install(packages, "inspect", bundle, "--json").returncode == 0


def test_the_base_deploys(packages: Path, bundle: Path, tmp_path: Path) -> None:
    done = in_base_install(
        packages, "deploy", "triton", bundle, "-o", tmp_path / "repository", "--allow-unvalidated"
    )
    assert done.returncode == 0, done.stderr


def test_the_base_plans_an_engine(packages: Path, bundle: Path) -> None:
    limits = [
        "--max-context",
        "256",
        "--max-prompt-tokens",
        "64",
        "--max-patches",
        "64",
        "--max-segments",
        "2",
    ]
    done = in_base_install(packages, "build", bundle, "--target", "onnxruntime", *limits, "--plan")
    assert done.returncode == 0, done.stderr


def test_doctor_says_what_the_base_can_do_and_what_adds_the_rest(packages: Path) -> None:
    done = in_base_install(packages, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    jobs = {job["name"]: job for job in json.loads(done.stdout)["jobs"]}
    possible = {name for name, job in jobs.items() if job["possible"]}
    assert {"run", "serve", "build", "deploy", "validate"} <= possible
    assert not jobs["export"]["possible"]
    assert "[export]" in jobs["export"]["advice"]
    assert "--against" in jobs["validate"]["advice"]


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["export", ROOT / "models" / "qwen2-vl-tiny", "-o", "{tmp}/bundle"], "export"),
        (["validate", "{bundle}", "--report", "{tmp}/report"], "validate"),
        (["validate", "{bundle}", "--report", "{tmp}/report", "--target", "torch"], "validate"),
        (["validate", "{bundle}", "--record", "{tmp}/golden"], "validate"),
        (["validate", "{bundle}", "--record", "{tmp}/golden", "--polygraphy"], "polygraphy"),
        (["build", "{bundle}", "--target", "tensorrt-rtx", "--sm", "89"], "rtx"),
    ],
)
def test_what_the_base_lacks_is_one_message_with_the_way_on(
    packages: Path, bundle: Path, tmp_path: Path, arguments: list[object], extra: str
) -> None:
    given = [str(argument).format(bundle=bundle, tmp=tmp_path) for argument in arguments]
    done = in_base_install(packages, *given)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    [message] = done.stderr.splitlines()
    assert message.startswith("error: ")
    assert f"[{extra}]" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "qwen3_vl"}, "qwen3_vl"),
        ({"rope_scaling": {"type": "linear"}}, "linear"),
        (None, "Not enough"),
    ],
)
def test_a_mistake_is_told_before_torch_is_loaded(
    bundle: Path, tmp_path: Path, change: dict[str, object] | None, says: str
) -> None:
    checkpoint = shutil.copytree(bundle.parent / "checkpoint", tmp_path / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    (checkpoint / "config.json").write_text(json.dumps({**config, **(change or {})}), encoding="utf-8")
    code = f"""
import shutil, sys
from collections import namedtuple
from qv_export.cli import run_command_line
if {change is None}:
    shutil.disk_usage = lambda path: namedtuple("Usage", "free")(1000)
code = run_command_line(["export", {str(checkpoint)!r}, "-o", {str(tmp_path / "bundle")!r}])
assert not {{"torch", "onnx_ir", "onnxscript"}} & set(sys.modules)
raise SystemExit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert not (tmp_path / "bundle").exists()


def test_a_part_that_is_missed_late_is_no_fault(packages: Path) -> None:
    code = """
import click
from qv_export.cli import cli, run_command_line

@cli.command()
def probe():
    import onnx_ir

raise SystemExit(run_command_line(["probe"]))
"""
    done = in_base_install(packages, code=code)
    assert done.returncode == 2
    assert "onnx_ir, which is not installed. Install: " in done.stderr


def test_the_python_api_says_the_same(packages: Path) -> None:
    code = "import qv_export\ntry: qv_export.export('models/qwen2-vl-tiny', '/nowhere')\n"
    code += "except qv_export.UserError as error: print(error)"
    done = in_base_install(packages, code=code)
    assert "Exporting a checkpoint needs torch" in done.stdout, done.stderr
