"""The proof of forms, as far as the second tier has time; the whole is `python -m benchmarks.guided BUNDLE`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from export.exporter import export_checkpoint

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]


def test_every_finished_answer_has_its_form_and_the_cost_is_told(tmp_path):
    export_checkpoint(REPOSITORY / "models" / "qwen2-vl-tiny", tmp_path / "bundle")
    command = [
        sys.executable,
        "-m",
        "benchmarks.guided",
        tmp_path / "bundle",
        "--schemas",
        "120",
        "--rounds",
        "1",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    told = {name: int(count) for count, name in re.findall(r"(\d+) (right|cut|refused)", done.stdout)}
    assert told["right"] >= 100
    assert told.get("refused", 0) == 0
    assert done.stdout.count("against a free one") == 3
