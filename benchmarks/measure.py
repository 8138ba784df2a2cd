"""Measures one contestant so that no other one disturbs it.

Each runs as a function in a fresh interpreter: its peak memory is its own and nothing is warm by accident.
A benchmark script names such functions, calls `measure` on each and ends with one table.

    python -m benchmarks.measure MODULE FUNCTION ARGUMENTS_JSON RESULT_FILE     (what the child runs)
"""

import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")
REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Measurement:
    """What one child process took, and what its function returned."""

    name: str
    wall_seconds: float
    """The whole process, interpreter start and imports included."""
    peak_rss_bytes: int
    result: Any


def measure(name: str, function: Callable[..., Any], **arguments: Any) -> Measurement:
    """Call a module-level function in a fresh interpreter; arguments and result travel as JSON.

    Raises:
        RuntimeError: the child failed; its error stands above on stderr.
    """
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        module = function.__module__ if function.__module__ != "__main__" else _main_module_name()
        target = [module, function.__name__, json.dumps(arguments, default=str), str(result)]
        measured = measure_command(name, [sys.executable, "-m", "benchmarks.measure", *target])
        return replace(measured, result=json.loads(result.read_text(encoding="utf-8")))


def measure_command(name: str, command: Sequence[str]) -> Measurement:
    """Run a command in the repository.

    Linux counts the parent's RSS at the time of the fork as the child's first peak. So this module, and with
    it every benchmark's parent process, imports nothing large.

    Raises:
        RuntimeError: the command failed; its error stands above on stderr.
    """
    print(f"[{datetime.now(UTC):%H:%M:%S}] {name} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    # Libraries' chatter must not end up in the table's stream.
    process = subprocess.Popen(list(command), cwd=REPOSITORY, stdout=sys.stderr.fileno())
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        process.wait()
        raise
    wall_seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{name}: the measured process ended with status {process.returncode}")
    return Measurement(name, wall_seconds, usage.ru_maxrss * 1024, None)


def time_calls(call: Callable[[], Result], repeats: int) -> tuple[float, Result]:
    """Median wall seconds of `repeats` calls in this process, and what the last one returned."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def machine_line() -> str:
    """Where and when the figures were taken: they mean nothing without it."""
    cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return (
        f"{datetime.now(UTC):%Y-%m-%d} · {_cpu_model()} · {cores} cores · {memory_gib:.0f} GiB RAM · "
        f"Python {platform.python_version()}, {versions}"
    )


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table on stdout under the machine line, columns aligned for reading in a terminal."""
    table = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    print(f"\n{title}\n{machine_line()}\n", *lines, sep="\n", flush=True)


def seconds_text(seconds: float) -> str:
    """Three figures below a second."""
    milliseconds = f"{seconds * 1e3:#.3g}".rstrip(".")
    return f"{milliseconds} ms" if seconds < 1 else f"{seconds:.1f} s"


def bytes_text(num_bytes: float) -> str:
    """Decimal units, as file sizes and the project's limits are given."""
    return f"{num_bytes / 1e9:.2f} GB"


def ratio_text(value: float, reference: float) -> str:
    return f"{value / reference:.2f}x"


def _main_module_name() -> str:
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        raise RuntimeError("run benchmarks as modules from the repository: python -m benchmarks.NAME")
    return spec.name


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def _run_child(module: str, function: str, arguments: str, result: str) -> None:
    returned = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    Path(result).write_text(json.dumps(returned), encoding="utf-8")


if __name__ == "__main__":
    _run_child(*sys.argv[1:])
