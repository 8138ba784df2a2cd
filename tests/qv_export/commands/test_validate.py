"""Exit codes, files and the bundle's verdicts, through the command line."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from export.bundle import FileRecord, open_bundle, sha256_of
from export.checkpoint.config import load_config
from export.weights.safetensors_file import fingerprint_safetensors, read_safetensors_header
from qv_export.cli import run_command_line
from tests.support.bundles import shared_bundle
from validate.gates.invariants import PROPERTIES
from validate.self_test.mutated import mutate_bundle
from validate.self_test.mutations import mutations

ROOT = Path(__file__).resolve().parents[3]
SMALL = ("--level", "quick", "--max-context", "128", "--max-patches", "256", "--max-batch", "3")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of our own: it will keep verdicts."""
    shared = shared_bundle(tmp_path_factory, {"dtype": "float32"})
    return shutil.copytree(shared, tmp_path_factory.mktemp("validated") / "bundle")


def run(*arguments: object) -> int:
    return run_command_line([str(argument) for argument in arguments])


def test_a_sound_bundle_passes_and_keeps_its_verdict(bundle, tmp_path, capsys):
    report = tmp_path / "report"
    assert run("validate", bundle, *SMALL, "--report", report, "--json") == 0
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert said["passed"] is True
    assert "PASS" in err
    assert "[  0%] Reference: text" in err
    assert {path.name for path in report.iterdir()} == {
        "report.html",
        "report.json",
        "junit.xml",
        "summary.md",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["report"], "no workspace is left"
    [verdict] = open_bundle(bundle).verdicts(said["engine_key"])
    assert {**verdict.to_json(), "report": str(report)} == said
    assert verdict.bundle_key == open_bundle(bundle).manifest.key
    assert verdict.is_narrow, "--max-context 128 is less than usual"
    peak = json.loads((report / "report.json").read_text())["machine"]["peak_memory_bytes"]
    assert 1e8 < peak < 1.6e10


def test_a_broken_graph_fails_with_1_and_says_where(bundle, tmp_path, capsys):
    fault = next(m for m in mutations(load_config(bundle)) if m.name == "mrope_sections_swapped")
    broken = mutate_bundle(bundle, fault, tmp_path / "broken")
    assert run("-q", "validate", broken, *SMALL, "--report", tmp_path / "report") == 1
    assert capsys.readouterr() == ("", "")
    [verdict] = open_bundle(broken).all_verdicts()
    assert verdict.passed is False
    assert verdict not in open_bundle(bundle).all_verdicts()
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


def test_a_golden_set_needs_no_torch_to_be_compared_with(bundle, tmp_path, monkeypatch):
    golden = tmp_path / "golden"
    assert run("-q", "validate", bundle, *SMALL, "--record", golden) == 0

    def installed(name):
        return None if name == "torch" else "1.0"

    monkeypatch.setattr("validate.run.facts.installed_version", installed)
    report = tmp_path / "report"
    assert run("-q", "validate", bundle, *SMALL, "--against", golden, "--report", report) == 0
    assert "torch" not in json.loads((report / "report.json").read_text())["machine"]["versions"]


@pytest.mark.parametrize(
    "shapes", [("--max-context", "64"), ("--max-patches", "16"), ("--max-patches", "20")]
)
def test_the_smallest_shapes_that_may_be_asked_are_no_fault_of_a_sound_bundle(bundle, tmp_path, shapes):
    report = tmp_path / "report"
    assert run("-q", "validate", bundle, "--level", "quick", *shapes, "--report", report) == 0
    content = json.loads((report / "report.json").read_text())
    asked = {gate["gate"] for gate in content["properties"]}
    outside = set(content["properties_outside"])
    assert asked | outside == {law.name for law in PROPERTIES}
    assert bool(outside) == ("--max-patches" in shapes)


def test_weights_of_one_value_alone_fail_the_validation(bundle, tmp_path):
    zeroed = shutil.copytree(bundle, tmp_path / "zeroed")
    manifest = open_bundle(zeroed).manifest
    [record] = manifest.weights
    path = zeroed / record.name
    tensor = max(read_safetensors_header(path), key=lambda tensor: tensor.length_bytes)
    content = bytearray(path.read_bytes())
    content[tensor.offset_bytes : tensor.offset_bytes + tensor.length_bytes] = bytes(tensor.length_bytes)
    path.write_bytes(content)
    replace(
        manifest,
        weights=(FileRecord(record.name, record.bytes, sha256_of(path), fingerprint_safetensors(path)),),
    ).write(zeroed)
    assert run("-q", "validate", zeroed, *SMALL, "--report", tmp_path / "report") == 1
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert tensor.name in content["weights"]["detail"]


def test_two_validations_with_one_report_exclude_each_other(bundle, tmp_path, capsys):
    lock = os.open(tmp_path / ".report.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        assert run("-q", "validate", bundle, *SMALL, "--report", tmp_path / "report") == 2
    finally:
        os.close(lock)
    assert "Another validation is writing" in capsys.readouterr().err


def test_tighter_gates_from_a_file_fail_what_passed(bundle, tmp_path):
    gates = tmp_path / "gates.toml"
    gates.write_text("multiple = 0.01\n")
    assert run("-q", "validate", bundle, *SMALL, "--gates", gates, "--report", tmp_path / "report") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "either --report DIR"),
        (["--report", "r", "--record", "g"], "either --report DIR"),
        (["--self-test", "--report", "r"], "--self-test tries the gates"),
        (["--self-test", "--target", "torch"], "Give another --target"),
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
