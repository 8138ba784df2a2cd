"""What the runner needs of CUDA: memory, copies, one stream, and a graph of what went into it.

A thin layer over `cuda.bindings.runtime` (cuda-python). The interface is a Protocol, so that the tests can put host
memory in its place.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from engines.session import EngineError
from export.errors import UserError
from export.install import package_command

Array = npt.NDArray[Any]

ALIGNMENT = 256
"""Bytes, of every address that TensorRT is given (NvInferRuntime.h, setTensorAddress)."""


class StreamDevice(Protocol):
    """One GPU with one stream. Addresses are integers; everything is ordered by the stream."""

    @property
    def stream(self) -> int: ...

    def select(self) -> None:
        """Make it the one that this thread's calls of the library go to."""
        ...

    def allocate(self, num_bytes: int) -> int:
        """Device memory, aligned to `ALIGNMENT` at least.

        Raises:
            EngineError: there is not so much.
        """
        ...

    def free(self, address: int) -> None: ...

    def clear(self, address: int, num_bytes: int) -> None:
        """Fill with zeros."""
        ...

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        """Within the device's memory; the two do not overlap."""
        ...

    def upload(self, address: int, array: Array) -> None:
        """Copy a contiguous array to the device; the array may be reused when the call returns."""
        ...

    def download(self, array: Array, address: int) -> None:
        """Copy into a contiguous array, and wait until it is there."""
        ...

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Record what `run` puts on the stream, without running it; gives a call that runs it all at once.

        Raises:
            EngineError: something in it cannot be recorded; the stream takes calls again.
        """
        ...


def load_cuda() -> Any:
    """The module `cuda.bindings.runtime`.

    Raises:
        UserError: it is not installed.
    """
    try:
        from cuda.bindings import runtime  # noqa: PLC0415  (only a machine that runs engines has it)
    except ImportError as error:
        command = package_command("cuda-python>=13")
        raise UserError("TensorRT engines need cuda-python to run.", f"Install it: {command}") from error
    return runtime


def call(function: Any, *arguments: Any) -> Any:
    """Call a function of CUDA's runtime; gives what it returns beside its status.

    Raises:
        EngineError: the call failed; CUDA's own words for it.
    """
    status, *values = function(*arguments)
    if status:
        _, text = load_cuda().cudaGetErrorString(status)
        raise EngineError(f"{function.__name__}: CUDA error {int(status)}, {text.decode()}")
    return values[0] if values else None


def current_sm() -> int:
    """Architecture of the current GPU, compute capability x 10.

    Raises:
        UserError, EngineError: no cuda-python, no driver or no GPU.
    """
    return sm_of(call(load_cuda().cudaGetDevice))


def sm_of(device: int) -> int:
    """Architecture of a GPU by its number. Errors as `current_sm`."""
    cuda = load_cuda()
    attribute = cuda.cudaDeviceAttr
    major = call(cuda.cudaDeviceGetAttribute, attribute.cudaDevAttrComputeCapabilityMajor, device)
    minor = call(cuda.cudaDeviceGetAttribute, attribute.cudaDevAttrComputeCapabilityMinor, device)
    return int(10 * major + minor)


def driver_cuda() -> str:
    """The newest CUDA version that the driver serves, as "13.0"."""
    version = int(call(load_cuda().cudaDriverGetVersion))
    return f"{version // 1000}.{version % 1000 // 10}"


def num_devices() -> int:
    """How many GPUs CUDA shows to this process.

    Raises:
        UserError, EngineError: no cuda-python, no driver or no GPU.
    """
    return int(call(load_cuda().cudaGetDeviceCount))


class CudaDevice:
    """A GPU, through CUDA's runtime: a `StreamDevice`. Its memory is freed with it."""

    def __init__(self, index: int = 0) -> None:
        """Args: index: as CUDA counts those that it shows to this process."""
        runtime = load_cuda()
        self._cuda, self._index = runtime, index
        self._allocated: set[int] = set()
        self.select()
        self._stream = call(runtime.cudaStreamCreateWithFlags, runtime.cudaStreamNonBlocking)
        weakref.finalize(self, _release, runtime, index, self._stream, self._allocated)

    def select(self) -> None:
        call(self._cuda.cudaSetDevice, self._index)

    @property
    def stream(self) -> int:
        return int(self._stream)

    @property
    def index(self) -> int:
        """As CUDA counts."""
        return self._index

    def free_bytes(self) -> int:
        """Of its memory, of every process."""
        self.select()
        return int(call(self._cuda.cudaMemGetInfo))  # free, and then all

    def allocate(self, num_bytes: int) -> int:
        self.select()
        address = int(call(self._cuda.cudaMalloc, num_bytes))
        self._allocated.add(address)
        return address

    def free(self, address: int) -> None:
        self.select()
        call(self._cuda.cudaStreamSynchronize, self._stream)
        call(self._cuda.cudaFree, address)
        self._allocated.remove(address)

    def clear(self, address: int, num_bytes: int) -> None:
        self.select()
        call(self._cuda.cudaMemsetAsync, address, 0, num_bytes, self._stream)

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        self.select()
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        call(self._cuda.cudaMemcpyAsync, target, source, num_bytes, kind, self._stream)

    def upload(self, address: int, array: Array) -> None:
        self.select()
        # From pageable memory: CUDA has taken the bytes when the call returns (CUDA Runtime API, API synchronization
        # behavior).
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(self._cuda.cudaMemcpyAsync, address, array.ctypes.data, array.nbytes, kind, self._stream)

    def download(self, array: Array, address: int) -> None:
        self.select()
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(self._cuda.cudaMemcpyAsync, array.ctypes.data, address, array.nbytes, kind, self._stream)
        call(self._cuda.cudaStreamSynchronize, self._stream)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        self.select()
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(self._cuda.cudaStreamBeginCapture, self._stream, mode)
        try:
            run()
        except BaseException:
            # A stream that stays in capture takes nothing else any more. Ending it fails too then: of no interest.
            self._cuda.cudaStreamEndCapture(self._stream)
            self._cuda.cudaGetLastError()
            raise
        graph = call(self._cuda.cudaStreamEndCapture, self._stream)
        executable = call(self._cuda.cudaGraphInstantiate, graph, 0)
        call(self._cuda.cudaGraphDestroy, graph)
        replay = _Replay(lambda: call(self._cuda.cudaGraphLaunch, executable, self._stream))
        weakref.finalize(replay, self._cuda.cudaGraphExecDestroy, executable)
        return replay


@dataclass(frozen=True, eq=False)
class _Replay:
    """A captured graph, which goes when nobody holds it any more."""

    launch: Callable[[], None]

    def __call__(self) -> None:
        self.launch()


def _release(runtime: Any, index: int, stream: Any, addresses: set[int]) -> None:
    """In the order that nothing is gone while it is in use."""
    runtime.cudaSetDevice(index)
    runtime.cudaStreamSynchronize(stream)
    for address in addresses:
        runtime.cudaFree(address)
    runtime.cudaStreamDestroy(stream)
