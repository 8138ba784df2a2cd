"""How a process that serves keeps its heap as small as what it uses: glibc's, which others do not resemble."""

import ctypes
import os

_SETTINGS = (
    (-8, 2, "MALLOC_ARENA_MAX", "glibc.malloc.arena_max"),
    (-3, 131072, "MALLOC_MMAP_THRESHOLD_", "glibc.malloc.mmap_threshold"),  # bytes
)
"""Number in malloc.h, value, and the environment's two names of it."""


def bound_heap() -> None:
    """Have few heaps, and arrays outside of them. To be called before a server's threads begin.

    By default each thread may get a heap, which keeps what the largest request of that thread once needed; and a
    threshold that grows puts large arrays among small ones, which keep the heap from shrinking. What the environment
    says of either (`MALLOC_ARENA_MAX`, `MALLOC_MMAP_THRESHOLD_`, `GLIBC_TUNABLES`) holds.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    for number, value, variable, tunable in _SETTINGS:
        if variable not in os.environ and tunable not in tunables:
            mallopt(number, value)


def give_memory_back() -> None:
    """Return what was freed to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
