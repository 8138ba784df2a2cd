import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels are Triton's: pip install 'qv-export[dev]'")

from benchmarks.kernels import Row, verdicts

REPOSITORY = Path(__file__).resolve().parents[2]

ROTARY = [
    Row("rotary, vision", "copy of as many bytes (ceiling)", 1.0, 4000.0, None),
    Row("rotary, vision", "PyTorch reference", 5.0, 800.0, 3e-3),
    Row("rotary, vision", "PTX a", 1.1, 3600.0, 3e-3, is_ours=True),
    Row("rotary, vision", "PTX b", 1.5, 2600.0, 3e-3, is_ours=True),
]
ATTENTION = [
    Row("attention, one image of 16,384", "SDPA per image", 2.0, 300.0, 4e-3),
    Row("attention, one image of 16,384", "PTX a", 1.9, 320.0, 4e-3, is_ours=True),
    Row("attention, one image of 16,384", "Triton's launch a", 1.0, 600.0, 4e-3),
]


def reached(rows):
    return [is_reached for _, is_reached in verdicts(rows, matmul_rate=700.0)]


def test_a_run_that_reaches_every_goal_is_said_to():
    assert reached(ROTARY + ATTENTION) == [True] * 5


def test_the_best_of_our_tiles_is_what_counts_but_every_one_must_be_right():
    wrong = [*ROTARY[:3], dataclasses.replace(ROTARY[3], error=1e-1)]
    assert reached(wrong) == [True, False]


def test_each_goal_can_be_missed():
    slow = [*ROTARY[:2], dataclasses.replace(ROTARY[2], milliseconds=1.3, rate=3000.0)]
    assert reached(slow) == [False, True]
    slower = [ATTENTION[0], dataclasses.replace(ATTENTION[1], milliseconds=2.1, rate=290.0)]
    assert reached(slower) == [False, False, True]


def test_an_element_that_was_never_written_is_a_miss():
    unwritten = [*ROTARY[:2], dataclasses.replace(ROTARY[2], error=float("nan"))]
    assert reached(unwritten) == [True, False]


@pytest.mark.slow
def test_the_run_for_a_gpu_starts_on_a_machine_without_one():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernels", "--dry-run"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    started = result.stdout.splitlines()
    assert sum("PTX Tile" in line for line in started) == 2 * 4 + 3 * 4
    assert not any("reached" in line for line in started)
