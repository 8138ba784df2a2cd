"""What every stage gets: its device, its sizes, its clock, and the way to say that it cannot run."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SMALL_CHECKPOINT = Path("models/qwen2-vl-tiny")


class Skipped(Exception):  # noqa: N818  (no error: a stage says that it has nothing to do here)
    """A stage cannot run here; the message says what it needs."""


@dataclass(frozen=True)
class Settings:
    is_dry_run: bool
    engine: Path | None = None
    """A TensorRT-RTX engine built for SM80, for the stage that tries to load one."""

    @property
    def device(self) -> str:
        return "cpu" if self.is_dry_run else "cuda"

    def size(self, full: int, small: int) -> int:
        """A size of the run, or its stand-in in a dry run."""
        return small if self.is_dry_run else full

    def milliseconds(self, call: Callable[[], Any], repeats: int = 20) -> float:
        """Median of calls that end when the device is done with them; one in a dry run."""
        times = []
        for _ in range(1 if self.is_dry_run else repeats):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            times.append(1e3 * (time.perf_counter() - start))
        return sorted(times)[len(times) // 2]

    def wait(self) -> None:
        if not self.is_dry_run:
            torch.cuda.synchronize()


def first_line(error: BaseException) -> str:
    """Its kind and what it says first."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
