"""What measuring took of memory: this process, and the GPU where one computes."""

from pathlib import Path

from engines.bench.report import BenchRow, LeftOut
from engines.gpus import used_memory_bytes


def resident_bytes(which: str = "VmRSS") -> int:
    """Of this process; `VmHWM` is the most that it ever had."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    [line] = [line for line in status.splitlines() if line.startswith(f"{which}:")]
    return int(line.split()[1]) * 1024


def device_bytes(device: str) -> int | None:
    """In use on the first GPU, by everybody; None where the CPU computes or nobody can say."""
    return None if device == "cpu" else used_memory_bytes()


def memory(device: str, loaded_bytes: int, device_before: int | None) -> list[BenchRow | LeftOut]:
    """Rows at the end of a run.

    Args:
        device: where the engine computes.
        loaded_bytes: resident once the engine was open, before anything was measured.
        device_before: in use on the GPU before the engine was opened.
    """
    rows: list[BenchRow | LeftOut] = [
        _row("this process, engine loaded", loaded_bytes),
        _row("this process, most of the whole run", resident_bytes("VmHWM")),
    ]
    now = device_bytes(device)
    if now is not None and device_before is not None:
        rows.append(_row("GPU, over what was in use before", now - device_before))
    elif device != "cpu":
        rows.append(LeftOut("memory", "GPU", "`nvidia-smi` does not say how much is in use"))
    return rows


def _row(case: str, num_bytes: int) -> BenchRow:
    return BenchRow("memory", case, num_bytes / 1e6, num_bytes / 1e6, num_bytes / 1e6, "MB", 1)
