"""What a GPU reaches at a copy of its own memory, and at one large product of the library that runs the engines."""

from collections.abc import Callable

import numpy as np

from engines.backends.ceilings import Ceiling, ceiling
from engines.backends.tensorrt.api import Bindings, ICudaEngine
from engines.backends.tensorrt.run.cuda import StreamDevice
from engines.backends.tensorrt.run.execution import Execution, WorkingMemory, engine_tensors
from export.dtypes import numpy_dtype

COPY_BYTES = 1 << 30
"""Larger than any cache of a GPU."""
_CALLS = 10
"""Before the clock is read: the host's part of a call is then of no weight."""


def copy_ceiling(device: StreamDevice, num_bytes: int = COPY_BYTES) -> Ceiling:
    """From device memory to device memory."""
    source, target = device.allocate(num_bytes), device.allocate(num_bytes)
    try:
        device.clear(source, num_bytes)
        call = _waited(device, target, lambda: device.copy(target, source, num_bytes))
        return ceiling(
            "copy", _CALLS * 2 * num_bytes, call, f"cudaMemcpyAsync of {num_bytes >> 20} MiB on the GPU"
        )
    finally:
        device.free(source)
        device.free(target)


def matmul_ceiling(trt: Bindings, engine: ICudaEngine, device: StreamDevice) -> Ceiling:
    """Of an engine that multiplies two square matrices (`build.matmul`)."""
    inputs, outputs = engine_tensors(engine)
    tensors = inputs | outputs
    sizes = {
        name: int(np.prod(facts.shape)) * numpy_dtype(facts.dtype).itemsize for name, facts in tensors.items()
    }
    addresses = {name: device.allocate(num_bytes) for name, num_bytes in sizes.items()}
    try:
        for name in inputs:
            device.clear(addresses[name], sizes[name])
        execution = Execution(trt, engine, device, 0, WorkingMemory(device))
        execution.prepare({name: facts.shape for name, facts in inputs.items()}, addresses)
        [(name, facts)] = outputs.items()
        side = facts.shape[0]
        call = _waited(device, addresses[name], execution.run)
        how = f"{trt.__name__}'s product of {side} x {side}, {facts.dtype}"
        return ceiling("matmul", _CALLS * 2 * side**3, call, how)
    finally:
        for address in addresses.values():
            device.free(address)


def _waited(device: StreamDevice, address: int, put: Callable[[], None]) -> Callable[[], None]:
    """Some calls in a row, and the wait for the last of them."""
    end = np.zeros(4, np.uint8)

    def call() -> None:
        for _ in range(_CALLS):
            put()
        device.download(end, address)

    return call
