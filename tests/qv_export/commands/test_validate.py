"""Exit codes, files and the manifest's verdict, through the command line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export.bundle import open_bundle
from export.config import load_config
from qv_export.cli import run_command_line
from tests.support.bundles import shared_bundle
from validate.selftest.mutated import mutate_bundle
from validate.selftest.mutations import mutations

ROOT = Path(__file__).resolve().parents[3]
SMALL = ("--level", "quick", "--max-context", "128", "--max-patches", "256", "--max-batch", "3")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of our own: its manifest will keep verdicts."""
    shared = shared_bundle(tmp_path_factory, {"dtype": "float32"})
    return shutil.copytree(shared, tmp_path_factory.mktemp("validated") / "bundle")


def run(*arguments: object) -> int:
    return run_command_line([str(argument) for argument in arguments])


def test_a_sound_bundle_passes_and_keeps_its_verdict(bundle, tmp_path, capsys):
    report = tmp_path / "report"
    assert run("validate", bundle, *SMALL, "--report", report, "--json") == 0
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert said["result"] == "pass"
    assert "PASS" in err
    assert "[  0%] Reference: text" in err
    assert {path.name for path in report.iterdir()} == {
        "report.html",
        "report.json",
        "junit.xml",
        "summary.md",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["report"], "no workspace is left"
    verdict = open_bundle(bundle).manifest.verdict
    assert verdict is not None
    assert {**verdict, "report": str(report)} == said
    assert verdict["bundle_key"] == open_bundle(bundle).manifest.key
    pytest.importorskip(
        "tritonclient", reason="needs Triton's protobuf classes: pip install 'qv-export[triton]'"
    )
    assert run("deploy", "triton", bundle, "-o", tmp_path / "repository") == 0, (
        "a verdict opens the way to a server"
    )
    peak = json.loads((report / "report.json").read_text())["machine"]["peak_memory_bytes"]
    assert 1e8 < peak < 1.6e10


def test_a_broken_graph_fails_with_1_and_says_where(bundle, tmp_path, capsys):
    fault = next(m for m in mutations(load_config(bundle)) if m.name == "mrope_sections_swapped")
    broken = mutate_bundle(bundle, fault, tmp_path / "broken")
    assert run("-q", "validate", broken, *SMALL, "--report", tmp_path / "report") == 1
    assert capsys.readouterr() == ("", "")
    assert (open_bundle(broken).manifest.verdict or {})["result"] == "fail"
    assert open_bundle(bundle).manifest.verdict != open_bundle(broken).manifest.verdict
    assert f"`{fault.node}`" in (tmp_path / "report" / "summary.md").read_text()


def test_a_golden_set_is_recorded_and_compared_with(bundle, tmp_path, capsys):
    golden, report = tmp_path / "golden", tmp_path / "report"
    assert run("validate", bundle, *SMALL, "--record", golden, "--json") == 0
    assert json.loads(capsys.readouterr().out)["cases"] == 6
    # In an interpreter where importing torch is an error.
    code = "import sys; sys.modules['torch'] = None; from qv_export.cli import main; main()"
    arguments = ["-q", "validate", bundle, *SMALL, "--against", golden, "--report", report]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, check=False)
    assert done.returncode == 0
    assert "golden set golden" in (report / "report.html").read_text()


def test_tighter_gates_from_a_file_fail_what_passed(bundle, tmp_path):
    gates = tmp_path / "gates.toml"
    gates.write_text("multiple = 0.01\n")
    assert run("-q", "validate", bundle, *SMALL, "--gates", gates, "--report", tmp_path / "report") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "either --report DIR"),
        (["--report", "r", "--record", "g"], "either --report DIR"),
        (["--report", "{bundle}"], "is not a report; it will not be replaced"),
        (["--report", "{bundle}/config.json/r"], "cannot be the place of a report: Not a directory"),
        (["--record", "{bundle}/config.json/g"], "cannot be the place of a golden set: Not a directory"),
        (["--report", "r", "--against", "{bundle}"], "is no golden set"),
        (["--report", "r", "--against", "{bundle}", "--tasks", "{bundle}/config.json"], "--against replaces"),
        (["--report", "r", "--tasks", "{bundle}/config.json"], "is no list of tasks"),
        (["--report", "r", "--gates", "{bundle}/config.json"], "cannot be read as TOML"),
        (["--report", "r", "--target", "tensorrt-rtx"], "Build one: qv-export build"),
        (["--report", "r", "--dtype", "float16"], "cannot compute in float16"),
    ],
)
def test_a_mistake_ends_with_2_and_one_message(bundle, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    arguments = [option.format(bundle=bundle) for option in options]
    assert run("-q", "validate", bundle, *SMALL, *arguments) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err


def test_what_is_no_bundle_is_said_before_anything_else(tmp_path, capsys):
    assert run("validate", tmp_path, "--report", tmp_path / "report") == 2
    assert "is not a bundle" in capsys.readouterr().err
