"""Launches a kernel's PTX with neither Triton nor TensorRT: through the CUDA driver, by ctypes.

This is what an engine does with an ahead-of-time plugin, less TensorRT's own glue. Memory and streams are PyTorch's;
the driver's current context is too, so a CUDA tensor must exist in the process before.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from plugins.tensorrt.ptx import CompiledKernel

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute, cuda.h
_JIT_ERROR_LOG, _JIT_ERROR_LOG_BYTES = 5, 6  # CUjit_option, cuda.h
_LOG_BYTES = 16_384


@cache
def driver() -> Any:
    """The driver's library, initialized.

    Raises:
        RuntimeError: there is no driver, or no GPU that it serves.
    """
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise RuntimeError("no CUDA driver here: libcuda.so.1 was not found") from error
    _check(library, library.cuInit(0), "cuInit")
    return library


def driver_cuda_version() -> str:
    """The newest CUDA version that the driver serves, as "13.0"."""
    version = ctypes.c_int()
    _check(driver(), driver().cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def compute_capability(device: int = 0) -> int:
    """Of a GPU, x 10, e.g. 90."""
    handle, values = ctypes.c_int(), [ctypes.c_int(), ctypes.c_int()]
    _check(driver(), driver().cuDeviceGet(ctypes.byref(handle), device), "cuDeviceGet")
    for value, attribute in zip(values, (_CAPABILITY_MAJOR, _CAPABILITY_MINOR), strict=True):
        status = driver().cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
        _check(driver(), status, "cuDeviceGetAttribute")
    return 10 * values[0].value + values[1].value


@dataclass(frozen=True)
class LoadedKernel:
    """A function in the current context. The module stays loaded for the life of the process."""

    function: ctypes.c_void_p
    kernel: CompiledKernel

    def launch(
        self,
        grid: Sequence[int],
        inputs: Sequence[int],
        scalars: Sequence[int],
        outputs: Sequence[int],
        stream: int,
    ) -> None:
        """Launch as an ahead-of-time plugin does.

        Args:
            grid: one to three sizes.
            inputs, outputs: device addresses, `Tensor.data_ptr()`.
            scalars: passed as int32 between them.
            stream: `torch.cuda.current_stream().cuda_stream`.
        """
        values = [
            *map(ctypes.c_void_p, inputs),
            *map(ctypes.c_int32, scalars),
            *map(ctypes.c_void_p, outputs),
        ]
        parameters = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        sizes = [*grid, 1, 1][:3]
        block, shared = self.kernel.threads_per_block, self.kernel.shared_bytes
        status = driver().cuLaunchKernel(
            self.function, *sizes, block, 1, 1, shared, ctypes.c_void_p(stream), parameters, None
        )
        _check(driver(), status, f"launch of {self.kernel.name}")


def load_kernel(kernel: CompiledKernel) -> LoadedKernel:
    """Let the driver compile the PTX for its GPU.

    Raises:
        RuntimeError: the driver refuses it; its log is quoted.
    """
    log = ctypes.create_string_buffer(_LOG_BYTES)
    options = (ctypes.c_int * 2)(_JIT_ERROR_LOG, _JIT_ERROR_LOG_BYTES)
    values = (ctypes.c_void_p * 2)(ctypes.addressof(log), _LOG_BYTES)
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    status = driver().cuModuleLoadDataEx(ctypes.byref(module), kernel.ptx.encode("ascii"), 2, options, values)
    _check(driver(), status, f"loading {kernel.name}: {log.value.decode(errors='replace')}")
    name = kernel.name.encode("ascii")
    _check(driver(), driver().cuModuleGetFunction(ctypes.byref(function), module, name), kernel.name)
    return LoadedKernel(function, kernel)


def _check(library: Any, status: int, what: str) -> None:
    if status:
        text = ctypes.c_char_p()
        library.cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"{what}: CUDA error {status}, {(text.value or b'unknown').decode()}")
