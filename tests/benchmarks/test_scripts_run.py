"""Every benchmark runs: figures are for full sizes, here tiny shapes prove the scripts alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.triton import missing

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("script", "options", "expected"),
    [
        ("export", ["--repeats", "1", "--skip-peer"], ["ours, tiny", "peak RSS", "cores"]),
        ("vision", ["--repeats", "1"], ["PyTorch SDPA", "ONNX Runtime, torch's graph", "one packed call"]),
        ("decode", ["--repeats", "1"], ["Transformers generate", "KV cache, tokens", "32 of 32"]),
        ("engine_build", [], ["vision, tiny", "plainly: decoder", "tiny-shaped"]),
        ("serving", [], ["one at a time", "p95", "Resident memory"]),
        ("video", [], ["qv-export", "qwen-vl-utils, pyav", "ratio to ours"]),
        ("validate", [], ["quick", "pass", "16 GB"]),
        ("fuzz_parsers", ["--seconds", "20"], ["config.json", "request body"]),
        ("media_process", [], ["224 x 224", "CPU in all"]),
        pytest.param(
            "fuzz_serving",
            [],
            ["5 of 5", "findings"],
            marks=pytest.mark.skipif(bool(missing()), reason=str(missing())),
        ),
    ],
)
def test_quick_run_ends_with_its_table(tmp_path, script, options, expected):
    command = [sys.executable, "-m", f"benchmarks.{script}", "--quick", "--work", str(tmp_path), *options]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert finished.stdout.rstrip().splitlines()[-1].startswith("| "), "the table comes last"
    for words in expected:
        assert words in finished.stdout


def test_the_step_without_its_engine_ends_with_its_table():
    command = [sys.executable, "-m", "benchmarks.step_host", "--quick"]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-4000:]
    rows = [line for line in finished.stdout.splitlines() if line.startswith("| 1 ")]
    assert len(rows) == 7
    assert all(row.count(" ms ") == 2 for row in rows), "whole logits and candidates"
