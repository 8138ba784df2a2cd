"""The run for several GPUs goes through on a CPU, and says what failed instead of stopping there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_proof.results import Finding, Proof
from benchmarks.multi_gpu_proof import Run, StepFailedError
from engines.ranks.launch import missing_parts

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_parts()), reason=f"not installed: {', '.join(missing_parts())}")
def test_every_step_goes_through_on_a_cpu(tmp_path):
    command = [sys.executable, "-m", "benchmarks.multi_gpu_proof", "--dry-run"]
    command += ["-o", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    proof = json.loads((tmp_path / "out" / "proof.json").read_text(encoding="utf-8"))
    assert [(stage["stage"], stage["status"]) for stage in proof["stages"]] == [
        (name, "done") for name in ("export", "build", "serving")
    ]
    who = [finding["contestant"] for finding in proof["stages"][-1]["findings"]]
    assert who == ["one graph, one process", "2 stages, one process", "2 ranks"]


def test_a_step_that_fails_is_told_and_those_that_need_it_are_skipped(tmp_path):
    def fail():
        raise StepFailedError("no memory")

    run = Run(Proof("a card", "2026-01-01", is_dry_run=False), tmp_path, 1)
    run.step("export", fail)
    run.step("build", list, needs="export")
    run.step("tests", lambda: [Finding("a", "ours", 1.0, "s")])
    written = json.loads((tmp_path / "proof.json").read_text(encoding="utf-8"))
    assert [(stage["status"], stage["reason"]) for stage in written["stages"]] == [
        ("failed", "no memory"),
        ("skipped", "needs export"),
        ("done", ""),
    ]


def test_a_command_that_fails_ends_its_step_with_its_last_words(tmp_path):
    run = Run(Proof("a card", "2026-01-01", is_dry_run=False), tmp_path, 1)
    with pytest.raises(StepFailedError, match=r"ended with 3: the disk is full"):
        run._told(
            [sys.executable, "-c", "import sys; print('the disk is full', file=sys.stderr); sys.exit(3)"]
        )


def test_time_that_is_over_ends_a_step(tmp_path):
    run = Run(Proof("a card", "2026-01-01", is_dry_run=False), tmp_path, 0)

    def slow() -> list[Finding]:
        run._told([sys.executable, "-c", "import time; time.sleep(60)"])
        return []

    run.step("export", slow)
    assert run.proof.stages[0].status == "out of time"
