"""One call of an engine: profile, shapes, memory."""

import logging
from collections.abc import Callable, Mapping
from typing import cast

import numpy as np

from engines.backends.facts import ShapeRange, TensorFacts
from engines.backends.tensorrt.api import Bindings, ICudaEngine, IExecutionContext, RtxExecutionContext
from engines.backends.tensorrt.description import dtype_name
from engines.backends.tensorrt.library import is_rtx
from engines.backends.tensorrt.log import RUN_LOG
from engines.backends.tensorrt.run.cuda import Array, StreamDevice
from engines.session import EngineError
from export.dtypes import numpy_dtype

_LOGGER = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]
Addresses = Mapping[str, int]


def engine_tensors(engine: ICudaEngine) -> tuple[dict[str, TensorFacts], dict[str, TensorFacts]]:
    """Inputs and outputs of a loaded engine by name, with the shapes of its profiles."""
    tensors: dict[str, dict[str, TensorFacts]] = {"INPUT": {}, "OUTPUT": {}}
    for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
        mode = engine.get_tensor_mode(name).name
        profiles = tuple(
            ShapeRange(*(tuple(shape) for shape in engine.get_tensor_profile_shape(name, i)))
            for i in range(engine.num_optimization_profiles)
            if mode == "INPUT"
        )
        dtype = dtype_name(engine.get_tensor_dtype(name))
        tensors[mode][name] = TensorFacts(name, dtype, tuple(engine.get_tensor_shape(name)), profiles)
    return tensors["INPUT"], tensors["OUTPUT"]


class WorkingMemory:
    """What the calls of an engine compute in: one block for all of its contexts, since one stream runs them in turn.

    It is ours, since the engine's own share would be for the largest shapes of the profile, some of which nobody asks
    for together; it grows to what the calls need.
    """

    def __init__(self, device: StreamDevice) -> None:
        self._device = device
        self.address, self.num_bytes = 0, 0
        self.version = 0
        """Counts the blocks: a context, and a graph made from it, are good for the one that they were given."""

    def reserve(self, num_bytes: int) -> None:
        """Make it at least that large.

        The block in use is freed when the larger one is there; only where the device has no room for both, before.

        Raises:
            EngineError: the device has no room. There is no block then, and no context may run before the next call.
        """
        if num_bytes <= self.num_bytes:
            return
        try:
            grown = self._device.allocate(num_bytes)
        except EngineError:
            if not self.num_bytes:
                raise
            self._release()
            grown = self._device.allocate(num_bytes)
        else:
            self._release()
        self.address, self.num_bytes = grown, num_bytes

    def _release(self) -> None:
        self.version += 1
        if self.num_bytes:
            address, self.address, self.num_bytes = self.address, 0, 0
            self._device.free(address)


class Execution:
    """One profile of an engine, with a context of its own that is set up for one call at a time.

    Not for several threads at once: TensorRT's contexts are not, and they share the working memory.
    """

    def __init__(
        self, trt: Bindings, engine: ICudaEngine, device: StreamDevice, profile: int, memory: WorkingMemory
    ) -> None:
        """Raises:
        EngineError: TensorRT cannot make a context; its own words are quoted.
        """
        self._device, self._memory = device, memory
        self._is_rtx = is_rtx(trt)
        # What streamed weights do cannot be captured (NvInferRuntime.h, IExecutionContext::enqueueV3).
        self._is_never_captured = bool(engine.streamable_weights_size)
        self._needs_memory = engine.get_device_memory_size_for_profile_v2(profile) > 0
        device.select()
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise EngineError(f"TensorRT cannot make an execution context:\n- {RUN_LOG.take()}")
        self._context: IExecutionContext = context
        self._engine = engine  # one with a cache writes it when its executions are gone
        _require(self._context.set_optimization_profile_async(profile, device.stream), "profile")
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory_version: int | None = None  # of the block that the context knows; None: set up anew
        self._num_runs = 0
        self._replay: Callable[[], None] | None = None

    def keep_compiled(self) -> None:
        """Write the engine's kernels down now, where it has a cache."""
        keep = getattr(self._engine, "keep_compiled", None)
        if keep is not None:
            keep()

    def is_ready(self) -> bool:
        """True if the call that was prepared last can be run (again)."""
        return self._memory_version == self._memory.version

    def forget(self) -> None:
        """Take the prepared call for done with: its graph goes, and the next one must be prepared."""
        self._memory_version, self._num_runs, self._replay = None, 0, None

    def prepare(self, shapes: Shapes, addresses: Addresses) -> None:
        """Set what differs from the call before.

        Raises:
            EngineError: TensorRT refuses something, or the device lacks memory; the next call is set up whole.
        """
        moved = {name: address for name, address in addresses.items() if self._addresses.get(name) != address}
        resized = {name: shape for name, shape in shapes.items() if self._shapes.get(name) != shape}
        if self.is_ready() and not moved and not resized:
            return
        self.forget()
        self._device.select()
        for name, address in moved.items():
            _require(self._context.set_tensor_address(name, address), f"address of {name}")
            self._addresses[name] = address
        for name, shape in resized.items():
            _require(self._context.set_input_shape(name, shape), f"shape {shape} of {name}")
            self._shapes[name] = shape
        needed = self._context.update_device_memory_size_for_shapes()
        _require(needed > 0 or not self._needs_memory, "shapes: it cannot say what memory they need")
        self._memory.reserve(needed)
        if self._memory.num_bytes:
            self._context.set_device_memory(self._memory.address, self._memory.num_bytes)
        self._memory_version = self._memory.version

    def output_shape(self, name: str) -> tuple[int, ...]:
        """Of an output, for the shapes that were set last."""
        return tuple(self._context.get_tensor_shape(name))

    def run(self) -> None:
        """Put the prepared call on the stream."""
        assert self.is_ready(), "prepare a call first"
        self._device.select()
        _require(self._context.execute_async_v3(self._device.stream), "call")

    def run_repeatedly(self) -> None:
        """Like `run`, for a call that comes again: first plainly, which loads the kernels, then as a graph."""
        assert self.is_ready(), "prepare a call first"
        self._device.select()
        if self._replay is None and self._num_runs and self.is_capturable():
            self._capture()
        self._num_runs += 1
        (self._replay or self.run)()

    def is_capturable(self) -> bool:
        """True if a CUDA graph can hold the prepared call: RTX compiles kernels as it goes, and says when not."""
        if self._is_never_captured:
            return False
        if not self._is_rtx:
            return True
        return cast(RtxExecutionContext, self._context).is_stream_capturable(self._device.stream)

    def _capture(self) -> None:
        try:
            self._replay = self._device.capture(self.run)
        except EngineError as error:
            self._is_never_captured = True
            _LOGGER.warning(
                "Steps run without a CUDA graph from now on, since one cannot be captured: %s", error
            )


def _require(is_done: bool, what: str) -> None:
    if not is_done:
        raise EngineError(f"TensorRT refuses the {what}\n- {RUN_LOG.take()}")


class Buffers:
    """Memory on the device for tensors that cross its border, each as large as its largest shape."""

    def __init__(self, device: StreamDevice) -> None:
        self._device = device
        self._sizes: dict[str, int] = {}
        self.addresses: dict[str, int] = {}

    def allocate(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        # TensorRT wants an address for an empty tensor too.
        num_bytes = max(int(np.prod(shape)) * numpy_dtype(dtype).itemsize, 1)
        self._sizes[name], self.addresses[name] = num_bytes, self._device.allocate(num_bytes)

    def upload(self, name: str, array: Array) -> None:
        assert array.nbytes <= self._sizes[name], (name, array.shape)
        if array.nbytes:
            self._device.upload(self.addresses[name], array)

    def download(self, name: str, array: Array, offset_bytes: int = 0) -> None:
        assert offset_bytes + array.nbytes <= self._sizes[name], (name, array.shape)
        self._device.download(array, self.addresses[name] + offset_bytes)


def upload_feeds(buffers: Buffers, specs: dict[str, TensorFacts], feeds: dict[str, Array]) -> Shapes:
    """Bring a call's arrays to the device in the engine's dtypes; gives their shapes."""
    for name, array in feeds.items():
        buffers.upload(name, np.ascontiguousarray(array, numpy_dtype(specs[name].dtype)))
    return {name: array.shape for name, array in feeds.items()}
