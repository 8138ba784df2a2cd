from itertools import count

import psutil
import pytest

from benchmarks.measure import (
    bytes_text,
    measure,
    measure_command,
    print_table,
    ratio_text,
    seconds_text,
    time_calls,
)


def hold_memory(num_bytes: int) -> int:
    """Runs in the measured child."""
    return sum(bytearray(b"\x01") * num_bytes)


def test_child_reports_its_own_time_memory_and_result():
    small = measure("small", hold_memory, num_bytes=1)
    large = measure("large", hold_memory, num_bytes=200_000_000)
    assert (small.result, large.result) == (1, 200_000_000)
    assert 200e6 < large.peak_rss_bytes < 260e6
    assert small.peak_rss_bytes < large.peak_rss_bytes
    assert small.wall_seconds > 0


def test_memory_of_one_child_does_not_count_for_the_next():
    measure("large", hold_memory, num_bytes=200_000_000)
    small = measure("small", hold_memory, num_bytes=1)
    # The parent's own memory is its floor, and this parent is pytest.
    assert small.peak_rss_bytes < max(100e6, 1.1 * psutil.Process().memory_info().rss)


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
