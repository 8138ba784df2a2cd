"""What a machine reaches at the simplest work of a kind: the limit that a measured time is a share of."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["copy", "matmul"]

COPY_BYTES = 256 << 20
"""Larger than any cache, so that memory itself is measured."""
_REPEATS = 5


@dataclass(frozen=True)
class Ceiling:
    """One limit, measured."""

    kind: str
    """`copy` or `matmul`."""
    per_second: float
    """Bytes read and written, or floating-point operations."""
    how: str


def ceiling(kind: Kind, amount: float, call: Callable[[], object], how: str) -> Ceiling:
    """Of the median of some calls after one that is not counted.

    Args:
        kind: what is bounded.
        amount: bytes or operations of one call.
        call: does the work, and returns once it is done.
        how: what was called, for the reader.
    """
    call()
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return Ceiling(kind, amount / statistics.median(seconds), how)
