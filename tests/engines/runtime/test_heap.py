"""What a server's process does to glibc's heap, told by glibc itself, and that the environment's word holds."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MAX_ARENAS, MMAP_BYTES = 2, 131072
pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="not glibc")

PROGRAM = """
import ctypes, sys, threading
from engines.runtime.heap import bound_heap, give_memory_back

if sys.argv[1] == "bound":
    bound_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
barrier = threading.Barrier(12)

def use():
    kept = libc.malloc(10000)
    barrier.wait(30)
    libc.free(kept)

threads = [threading.Thread(target=use) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.free(libc.malloc(8 << 20))  # by default glibc takes arrays below this size from the heap from now on
large = libc.malloc(1 << 20)
sys.stdout.flush()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
libc.free(large)
give_memory_back()
"""


def heaps_and_mapped_bytes(how: str, **env: str) -> tuple[int, int]:
    """Of a process in which twelve threads and one large array have memory at the same time."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        cwd=ROOT,
        env={**ours, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    [mapped] = re.findall(r'<total type="mmap" count="\d+" size="(\d+)"', done.stdout)
    return len(re.findall("<heap nr=", done.stdout)), int(mapped)


def test_many_threads_share_few_heaps_and_a_large_array_is_in_none_of_them():
    heaps, mapped = heaps_and_mapped_bytes("bound")
    assert heaps <= MAX_ARENAS
    assert mapped >= 1 << 20
    heaps, mapped = heaps_and_mapped_bytes("not bound")
    assert heaps > 4
    assert mapped < 1 << 20


@pytest.mark.parametrize(
    "env",
    [{"MALLOC_ARENA_MAX": "5"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=5"}],
    ids=lambda env: next(iter(env)),
)
def test_what_the_environment_says_holds(env):
    heaps, mapped = heaps_and_mapped_bytes("bound", **env)
    assert MAX_ARENAS < heaps <= 5
    assert mapped >= 1 << 20
