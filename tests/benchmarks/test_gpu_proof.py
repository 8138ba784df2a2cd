"""The run for a GPU goes through on a CPU, keeps what it knows after each stage, and fills pages from real runs."""

import itertools
import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels are Triton's: pip install 'qv-export[dev]'")

from benchmarks.gpu_proof import stages
from benchmarks.gpu_proof.results import (
    BEGIN,
    END,
    Finding,
    Proof,
    StageResult,
    put_into_page,
    read_proof,
    table,
    worst,
    write_proof,
)
from benchmarks.gpu_proof.settings import Settings
from benchmarks.gpu_proof.stages import STAGES, Stage, run_all, run_apart, run_here

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
DRY = Settings(is_dry_run=True)
DONE = StageResult("first", "done", 1.0, findings=(Finding("a | case", "ours", 12.5, "GB/s", 1e-3),))
PROOF = Proof("a card", "2026-01-01", is_dry_run=False, stages=(DONE,))


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_stage_goes_through_on_a_cpu_or_says_what_it_needs(stage, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    result = run_apart(stage, DRY, 600)
    if stage.name == "TensorRT-RTX engine":
        assert result.status == "skipped"
        assert "needs --engine FILE" in result.reason
    else:
        assert (result.status, result.reason) == ("done", "")
        assert result.findings
        assert not any("Error" in finding.note for finding in result.findings)


def test_the_command_writes_its_results_and_ends_with_the_table(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu_proof", "--dry-run", "-o", str(tmp_path / "out")]
    command += ["--only", "TensorRT-RTX engine"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    proof = read_proof(tmp_path / "out" / "proof.json")
    assert [stage.status for stage in proof.stages] == ["skipped"]
    assert done.stdout.strip() == table(proof).strip()
    assert done.stdout.startswith("Dry run on a CPU")


def test_stages_are_told_as_they_end_and_those_without_time_are_named(monkeypatch):
    clock = itertools.count(0, 100)  # however many stages there are
    monkeypatch.setattr("benchmarks.gpu_proof.stages.time.monotonic", lambda: next(clock))
    monkeypatch.setattr(
        stages, "run_apart", lambda stage, _settings, seconds: replace(DONE, reason=f"{seconds}")
    )
    told: list[StageResult] = []
    run_all(Settings(is_dry_run=False), 250, (), told.append)
    assert [result.status for result in told] == ["done"] * 2 + ["out of time"] * (len(STAGES) - 2)
    assert [float(result.reason) for result in told[:2]] == [90, 50]  # its own limit, then what is left


def test_a_stage_that_dies_or_takes_too_long_ends_alone(tmp_path, monkeypatch):
    python = sys.executable

    def result_of(program, seconds=60.0):
        script = tmp_path / "python"
        script.write_text(f"#!{python}\n{textwrap.dedent(program)}", encoding="utf-8")
        script.chmod(0o755)
        monkeypatch.setattr("sys.executable", str(script))
        return run_apart(Stage("one", "none:none", 1), DRY, seconds)

    died = result_of("import os, sys\nsys.stderr.write('illegal address')\nsys.stderr.flush()\nos.abort()")
    assert died.status == "failed"
    assert "illegal address" in died.reason
    assert result_of("import time\ntime.sleep(60)", seconds=1.0).status == "out of time"
    assert result_of("pass").status == "failed"


def test_an_error_in_a_stage_is_its_result(monkeypatch):
    def fail(_settings):
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr(Stage, "load", lambda _stage: fail)
    result = run_here(STAGES[0], DRY)
    assert (result.status, result.reason) == ("failed", "RuntimeError: no such kernel")
    assert worst([DONE, result]) == 1
    assert worst([DONE, replace(result, status="skipped")]) == 0


def test_a_proof_is_kept_as_it_was_and_shown_as_one_table(tmp_path):
    write_proof(PROOF, tmp_path)
    assert read_proof(tmp_path / "proof.json") == PROOF
    assert json.loads((tmp_path / "proof.json").read_text(encoding="utf-8"))["machine"] == "a card"
    [row] = [line for line in table(PROOF).splitlines() if line.startswith("| first")]
    assert row == "| first | a / case | ours | 12.5 GB/s | 1.0e-03 |  |"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["proof.json", "proof.md"]


def test_figures_go_between_the_marks_of_a_page_and_dry_ones_do_not(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    put_into_page(PROOF, page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}\n\nRun on a card, 2026-01-01.")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    put_into_page(PROOF, page)
    assert page.read_text(encoding="utf-8") == text
    with pytest.raises(ValueError, match="a dry run has no figures"):
        put_into_page(replace(PROOF, is_dry_run=True), page)
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="must have one line"):
        put_into_page(PROOF, page)


def test_the_projects_own_page_has_the_marks():
    text = (REPOSITORY / stages.page_of_the_project()).read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
