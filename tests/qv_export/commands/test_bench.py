"""`qv-export bench`: figures of a bundle, kept, and compared with those of another run."""

import json

import pytest

from export.exporter import export_checkpoint
from qv_export.cli import run_command_line
from tests.support.serve import ROOT

QUICK = ("--threads", "1", "--seconds", "0", "--max-context", "512", "--slots", "2")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bench") / "bundle"
    export_checkpoint(ROOT / "models" / "qwen2-vl-tiny", directory)
    return directory


@pytest.fixture(scope="module")
def report(bundle, tmp_path_factory):
    """Of the sections that are quickly measured."""
    path = tmp_path_factory.mktemp("report") / "report.json"
    sections = ("--only", "decode", "--only", "memory")
    assert run_command_line(["bench", str(bundle), *QUICK, *sections, "-o", str(path)]) == 0
    return path


def bench(bundle, *options):
    return run_command_line(["bench", str(bundle), *QUICK, *map(str, options)])


def scaled(report, path, factor, **changes):
    """The report with every figure of decode so many times as large."""
    content = {**json.loads(report.read_text()), **changes}
    for row in content["rows"]:
        if row["section"] == "decode":
            row.update({name: row[name] * factor for name in ("median", "low", "high")})
    path.write_text(json.dumps(content))
    return path


def test_every_section_is_measured_and_told(bundle, capsys):
    assert bench(bundle, "--clients", 1, "--clients", 2, "--new-tokens", 4, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    cases = {
        section: [row["case"] for row in told["rows"] if row["section"] == section]
        for section in told["sections"]
    }
    assert list(cases) == ["preprocessing", "vision", "prefill", "decode", "serving", "memory"]
    assert cases["prefill"] == ["32 tokens", "128 tokens", "512 tokens"]
    assert cases["decode"] == [f"batch {b}, context {c}" for b in (1, 2) for c in (128, 512)]
    assert "2 clients, new tokens" in cases["serving"]
    assert all(row["low"] <= row["median"] <= row["high"] for row in told["rows"])
    assert all(row["median"] > 0 for row in told["rows"])
    assert told["subject"]["num_slots"] == 2


def test_a_run_is_compared_with_itself_and_a_loss_is_exit_1(bundle, report, tmp_path, capsys):
    only = ("--only", "decode")
    slower_then = scaled(report, tmp_path / "slow.json", 1000)
    assert bench(bundle, *only, "--compare", slower_then) == 0
    faster_then = scaled(report, tmp_path / "fast.json", 1 / 1000)
    capsys.readouterr()
    assert bench(bundle, *only, "--compare", faster_then) == 1
    told = capsys.readouterr()
    assert "LOSS" in told.out
    assert "decode, batch 2, context 512" in told.err
    assert bench(bundle, *only, "--compare", faster_then, "--max-loss", 10_000_000, "--json") == 0
    compared = json.loads(capsys.readouterr().out)["compared"]
    assert {one["verdict"] for one in compared} == {"worse"}


def test_another_machine_is_refused_before_anything_is_measured(bundle, report, tmp_path, capsys):
    subject = {**json.loads(report.read_text())["subject"], "cpu": "another"}
    other = scaled(report, tmp_path / "other.json", 1000, subject=subject)
    assert bench(bundle, "--compare", other, "-o", tmp_path / "new.json") == 2
    assert "another" in capsys.readouterr().err
    assert not (tmp_path / "new.json").exists()
    assert bench(bundle, "--only", "decode", "--compare", other, "--compare-anyway") == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-loss", "5"], "--compare"),
        (["--compare-anyway"], "--compare"),
        (["--target", "onnxruntime", "--engine", "abc"], "not both"),
        (["-o", "/nowhere/at/all.json"], "Make it first"),
        (["--clients", "500"], "500 clients"),
        (["--new-tokens", "500"], "do not fit into a context of 512"),
    ],
)
def test_a_wish_that_cannot_be_followed_is_refused_by_name(bundle, options, words, capsys):
    assert bench(bundle, *options) == 2
    assert words in capsys.readouterr().err


def test_a_file_that_is_no_report_is_a_mistake(bundle, tmp_path, capsys):
    (tmp_path / "other.json").write_text("{")
    assert bench(bundle, "--compare", tmp_path / "other.json") == 2
    assert "other.json" in capsys.readouterr().err
