"""How does one call reach an engine: which profile, which shapes, which memory?"""

from collections.abc import Mapping
from typing import cast

import ml_dtypes
import numpy as np

from engines.backends.facts import ShapeRange, TensorFacts
from engines.backends.tensorrt.api import Bindings, ICudaEngine, IExecutionContext, RtxExecutionContext
from engines.backends.tensorrt.description import dtype_name
from engines.backends.tensorrt.flavour import is_rtx
from engines.backends.tensorrt.run.cuda import Array, Device
from engines.session import EngineError

_NUMPY_DTYPES: Mapping[str, np.dtype] = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}

Shapes = Mapping[str, tuple[int, ...]]
Addresses = Mapping[str, int]


def numpy_dtype(name: str) -> np.dtype:
    """Of the contract's name; NumPy has no bfloat16 of its own."""
    return _NUMPY_DTYPES.get(name) or np.dtype(name)


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


class Execution:
    """One profile of an engine, with a context and working memory of its own.

    Working memory is ours, since the engine's own share would be for the largest shapes of the profile, some of which
    nobody asks for together; it grows to what the calls need.
    """

    def __init__(self, trt: Bindings, engine: ICudaEngine, device: Device, profile: int) -> None:
        self._device = device
        self._is_rtx = is_rtx(trt)
        self._context: IExecutionContext = engine.create_execution_context(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        self._require(self._context.set_optimization_profile_async(profile, device.stream), "profile")
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory, self._memory_bytes = 0, 0

    def prepare(self, shapes: Shapes, addresses: Addresses) -> None:
        """Set what differs from the call before."""
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                self._require(self._context.set_tensor_address(name, address), f"address of {name}")
                self._addresses[name] = address
        is_new = False
        for name, shape in shapes.items():
            if self._shapes.get(name) != shape:
                self._require(self._context.set_input_shape(name, shape), f"shape {shape} of {name}")
                self._shapes[name], is_new = shape, True
        if is_new:
            self._reserve(self._context.update_device_memory_size_for_shapes())

    def output_shape(self, name: str) -> tuple[int, ...]:
        """Of an output, for the shapes that were set last."""
        return tuple(self._context.get_tensor_shape(name))

    def run(self) -> None:
        """Put the prepared call on the stream."""
        self._require(self._context.execute_async_v3(self._device.stream), "call")

    def is_capturable(self) -> bool:
        """True if a CUDA graph can hold the prepared call: RTX compiles kernels as it goes, and says when not."""
        if not self._is_rtx:
            return True
        return cast(RtxExecutionContext, self._context).is_stream_capturable(self._device.stream)

    def _reserve(self, num_bytes: int) -> None:
        if num_bytes > self._memory_bytes:
            if self._memory:
                self._device.free(self._memory)
            self._memory, self._memory_bytes = self._device.allocate(num_bytes), num_bytes
            self._context.set_device_memory(self._memory, num_bytes)

    @staticmethod
    def _require(is_done: bool, what: str) -> None:
        if not is_done:
            raise EngineError(f"TensorRT refuses the {what}; its log above says why")


class Buffers:
    """Memory on the device for tensors that cross its border, each as large as its largest shape."""

    def __init__(self, device: Device) -> None:
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

    def download(self, name: str, array: Array) -> None:
        assert array.nbytes <= self._sizes[name], (name, array.shape)
        self._device.download(array, self.addresses[name])
