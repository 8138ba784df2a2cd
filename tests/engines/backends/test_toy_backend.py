"""A target is one class and one row: every command knows this toy, and an engine of it is what a verdict is of."""

import ast
import json
import shutil
from pathlib import Path

import pytest

from engines.backends import BACKENDS
from engines.backends.onnxruntime.backend import OnnxRuntimeBackend
from export.bundle import open_bundle
from qv_export.cli import run_command_line
from tests.support.bundles import shared_bundle

ROOT = Path(__file__).resolve().parents[3]
PRODUCT = ("engines", "export", "plugins", "qv_export", "validate")
LIMITS = ("--max-patches", "256", "--max-segments", "8", "--max-batch", "3")


class ToyBackend(OnnxRuntimeBackend):
    """Engines that are files; their graphs are run by ONNX Runtime within the limits that they were built for."""

    name = "toy"
    needs_engine = True

    def build(self, bundle, graph, limits, architectures, options, output, progress, *, outputs=()):
        output.write_bytes(graph.encode())
        return super().build(bundle, graph, limits, architectures, options, output, progress, outputs=outputs)

    def open(self, bundle, record, *, num_slots, capacity, num_threads=None, device=None):
        assert capacity <= record.limits["max_context"]
        capacity = record.limits["max_context"]
        return super().open(bundle, record, num_slots=num_slots, capacity=capacity, num_threads=num_threads)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(BACKENDS, "toy", ToyBackend())


@pytest.fixture
def bundle(toy, tmp_path_factory, tmp_path):
    shared = shared_bundle(tmp_path_factory, {"dtype": "float32"})
    return shutil.copytree(shared, tmp_path / "bundle")


def command(*arguments, expected=0):
    assert run_command_line([str(argument) for argument in arguments]) == expected


def said(capsys):
    return json.loads(capsys.readouterr().out)


def test_what_is_validated_run_and_deployed_is_one_engine(bundle, tmp_path, capsys):
    keys = []
    for context in (128, 160):
        command("build", bundle, "--target", "toy", *LIMITS, "--max-context", context, "--json")
        keys.append(said(capsys)["key"])
    smaller, larger = keys

    report = ("--report", tmp_path / "report", "--json")
    command("validate", bundle, "--target", "toy", "--level", "quick", *report)
    assert said(capsys)["engine_key"] == smaller
    command("run", bundle, "--target", "toy", "--prompt", "?", "--max-new-tokens", 1, "--json")
    assert said(capsys)["engine"] == smaller

    deploy = ("deploy", "triton", bundle, "-o", tmp_path / "repository", "--json")
    command(*deploy, "--engine", smaller, expected=2)
    assert "passed at quick alone" in capsys.readouterr().err
    command("validate", bundle, "--engine", smaller, *report)
    assert said(capsys)["level"] == "standard"

    # Neither a later quick run nor the reference's own validation costs the proof.
    command("validate", bundle, "--engine", smaller, "--level", "quick", *report)
    command("validate", bundle, "--target", "torch", "--level", "quick", *report)
    capsys.readouterr()
    command(*deploy, "--engine", smaller)
    deployed = said(capsys)
    assert (deployed["engine_key"], deployed["verdict"]["level"]) == (smaller, "standard")

    command(*deploy, "--engine", larger, expected=2)
    refusal = capsys.readouterr().err
    assert f"qv-export validate {bundle} --engine {larger} --report REPORT" in refusal
    command(*deploy, expected=2)
    assert f"qv-export validate {bundle} --target onnxruntime --report REPORT" in capsys.readouterr().err

    loose = tmp_path / "loose.toml"
    loose.write_text("multiple = 1e12\n")
    command("validate", bundle, "--engine", larger, "--gates", loose, *report)
    capsys.readouterr()
    command(*deploy, "--engine", larger, expected=2)
    assert "gates that grant more than the defaults" in capsys.readouterr().err

    command("inspect", bundle)
    shown = capsys.readouterr().out
    assert all(key in shown for key in keys)
    assert "torch-float32" in shown
    engine = open_bundle(bundle).engine_directory(smaller) / "vision.engine"
    command("inspect", bundle, "--verify")
    engine.write_bytes(b"visioN")
    command("inspect", bundle, "--verify", expected=2)
    command(*deploy, "--engine", smaller, "--allow-unvalidated", expected=2)


def test_every_command_knows_a_new_target(bundle, toy, capsys):
    command("doctor")
    assert "toy" in capsys.readouterr().out
    for name in ("build", "run", "validate"):
        command(name, "--help")
        assert "toy" in capsys.readouterr().out
    command("build", bundle, "--target", "toy", *LIMITS, "--max-context", 128, "--plan")
    command("validate", bundle, "--target", "nothing", "--report", "r", expected=2)
    assert "toy" in capsys.readouterr().err


def test_no_target_is_asked_for_by_its_name_outside_of_the_backends():
    """A comparison, a membership test or a match with a target's name belongs into its backend."""
    found = [
        f"{path.relative_to(ROOT)}: {ast.unparse(node)}"
        for package in PRODUCT
        for path in (ROOT / package).rglob("*.py")
        if "engines/backends" not in path.as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if any(name in BACKENDS for name in compared_strings(node))
    ]
    assert not found, found


def compared_strings(node):
    """Constant strings that a node compares something with."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
    elif isinstance(node, ast.MatchValue):
        sides = [node.value]
    else:
        return []
    parts = [
        part
        for side in sides
        for part in (side.elts if isinstance(side, ast.Set | ast.Tuple | ast.List) else [side])
    ]
    return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
