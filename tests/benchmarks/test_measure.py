import json
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from benchmarks.measure import (
    bytes_text,
    measure_command,
    print_table,
    ratio_text,
    seconds_text,
    time_calls,
)

REPOSITORY = Path(__file__).parents[2]


def hold_memory(num_bytes: int) -> int:
    """Runs in the measured child."""
    return sum(bytearray(b"\x01") * num_bytes)


# In an interpreter of its own: a child's peak starts at what its parent held at most, and pytest holds much.
MEASURING = """
import json
from benchmarks.measure import measure
from tests.benchmarks.test_measure import hold_memory
runs = [measure(str(size), hold_memory, num_bytes=size) for size in (1, 200_000_000, 1)]
print(json.dumps([[run.result, run.peak_rss_bytes, run.wall_seconds] for run in runs]))
"""


def test_each_child_reports_its_own_result_memory_and_time():
    finished = subprocess.run(
        [sys.executable, "-c", MEASURING], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    results, peaks, seconds = zip(*json.loads(finished.stdout), strict=True)
    assert results == (1, 200_000_000, 1)
    assert 200e6 < peaks[1] < 300e6
    assert max(peaks[0], peaks[2]) < 100e6
    assert min(seconds) > 0


def test_a_failing_child_is_an_error_with_its_name():
    with pytest.raises(RuntimeError, match=r"broken: .* status 3"):
        measure_command("broken", ["sh", "-c", "exit 3"])


def test_time_calls_gives_the_median_and_the_last_result(monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 11.0, 20.0, 22.0])  # calls of 5, 1 and 2 seconds
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: next(clock))
    calls = count(1)
    assert time_calls(lambda: next(calls), 3) == (2.0, 3)


def test_table_is_markdown_under_the_machine_line(capsys):
    print_table("Title", ("name", "value"), [["a", "1"], ["longer", "2"]])
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "Title"
    assert "cores" in lines[1]
    assert "onnxruntime" in lines[1]
    assert lines[3:] == [
        "| name   | value |",
        "|--------|-------|",
        "| a      | 1     |",
        "| longer | 2     |",
    ]


def test_units():
    assert [seconds_text(t) for t in (0.00046, 0.0213, 0.213, 40.04)] == [
        "0.460 ms",
        "21.3 ms",
        "213 ms",
        "40.0 s",
    ]
    assert (bytes_text(3_600_000_000), ratio_text(3, 2)) == ("3.60 GB", "1.50x")
