"""Polygraphy, which knows nothing of this project, runs the vision graph on the recorded inputs and judges it."""

import shutil

import pytest

from export import install
from export.bundle import open_bundle
from qv_export.cli import ExitCode, run_command_line
from validate.records.polygraphy_files import INPUTS_NAME, OUTPUTS_NAME
from validate.run.reference import record_for_polygraphy
from validate.self_test.mutated import mutate_bundle
from validate.self_test.mutations import mutations

pytest.importorskip("polygraphy", reason="needs Polygraphy: pip install polygraphy")


@pytest.fixture
def recorded(exported, tmp_path):
    golden = shutil.copytree(exported.records, tmp_path / "golden")
    return record_for_polygraphy(exported.plan, golden)


def polygraphy_accepts(graph, recorded):
    """As `polygraphy run GRAPH --onnxrt --load-inputs ... --load-outputs ... --atol 1e-3` does."""
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, RunResults, SimpleCompareFunc
    from polygraphy.json import load_json

    feeds = load_json(str(recorded / INPUTS_NAME))
    results = Comparator.run([OnnxrtRunner(SessionFromOnnx(str(graph)))], data_loader=feeds)
    results.extend(RunResults.load(str(recorded / OUTPUTS_NAME)))
    return bool(Comparator.compare_accuracy(results, compare_func=SimpleCompareFunc(atol=1e-3, rtol=1e-3)))


def test_polygraphy_accepts_the_sound_graph_and_no_broken_one(exported, recorded, tmp_path):
    assert polygraphy_accepts(open_bundle(exported.bundle).graph("vision"), recorded)
    fault = next(fault for fault in mutations(exported.config) if fault.name == "patch_axes_swapped")
    broken = mutate_bundle(exported.bundle, fault, tmp_path / "broken")
    assert not polygraphy_accepts(open_bundle(broken).graph("vision"), recorded)


def test_without_record_the_option_means_nothing(exported, tmp_path, capsys):
    arguments = ["validate", str(exported.bundle), "--report", str(tmp_path / "report"), "--polygraphy"]
    assert run_command_line(arguments) == ExitCode.USER_ERROR
    assert "--record" in capsys.readouterr().err


def test_a_missing_polygraphy_is_told_with_its_installation(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(install, "find_spec", lambda _: None)
    arguments = ["validate", str(exported.bundle), "--record", str(tmp_path / "golden"), "--polygraphy"]
    assert run_command_line(arguments) == ExitCode.USER_ERROR
    assert install.install_command("polygraphy") in capsys.readouterr().err
    assert not (tmp_path / "golden").exists()
