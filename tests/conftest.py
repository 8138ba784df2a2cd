"""What all tests share: threads, example generation, and which machines can run which."""

import os
import subprocess
from functools import cache
from importlib.util import find_spec

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread and one core a worker, set before torch and ONNX Runtime load: workers that each start a thread a core
    # only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[int(os.environ["PYTEST_XDIST_WORKER"][2:]) % len(_cores)]})

# The machine's load must not fail a test, and CI must run the same examples each time.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU: `nvidia-smi -L` lists none"))
        if item.get_closest_marker("multi_gpu") and (count := num_gpus()) < 2:
            item.add_marker(pytest.mark.skip(reason=f"needs two NVIDIA GPUs: `nvidia-smi -L` lists {count}"))
        if item.get_closest_marker("tensorrt") and not has_tensorrt():
            item.add_marker(pytest.mark.skip(reason="needs TensorRT bindings: pip install 'qv-export[rtx]'"))


def has_gpu() -> bool:
    return num_gpus() > 0


@cache
def num_gpus() -> int:
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return listing.stdout.count("GPU ") if listing.returncode == 0 else 0


@cache
def has_tensorrt() -> bool:
    return any(find_spec(name) for name in ("tensorrt_rtx_bindings", "tensorrt_rtx", "tensorrt"))
