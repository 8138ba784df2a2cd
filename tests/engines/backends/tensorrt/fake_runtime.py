"""A runtime that does what TensorRT's does, on host memory, with ONNX Runtime as the engine.

It keeps to `engines.backends.tensorrt.api` and is strict where TensorRT is silent: memory that was never written is
not a number, an address must be aligned and lie in living memory with room for its tensor, a shape must fit the
profile, a cache's input and output must be one address, nothing but engine calls may go into a captured graph, and a
graph may not run once its context was set up for another call or its working memory is gone. It fails as TensorRT
does when a test tells it to: the attributes that say so are `HostDevice.room_bytes` and those of `Failures`.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort

from engines.backends.candidates import add_candidates
from engines.backends.facts import ShapeRange
from engines.backends.tensorrt.api import Bindings, ICudaEngine, IExecutionContext, Named
from engines.backends.tensorrt.build.profiles import graph_profiles, shape_ranges
from engines.backends.tensorrt.log import RUN_LOG
from engines.backends.tensorrt.run.cuda import ALIGNMENT, Array, StreamDevice
from engines.session import EngineError
from engines.sizing.limits import Limits
from export.checkpoint.config import ModelConfig
from export.contract import DecoderStage, GraphName, TensorSpec, graph_contract, with_candidates

_DTYPES = {"float32": "FLOAT", "bfloat16": "BF16", "int32": "INT32", "int64": "INT64"}
_NOT_A_NUMBER = 0xFF


def numpy_dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


class HostDevice:
    """A `StreamDevice` whose memory is the host's."""

    stream = 7
    selected: "HostDevice | None" = None
    """The one that this process's calls of the library go to."""

    def select(self) -> None:
        HostDevice.selected = self

    def __init__(self) -> None:
        self.memory: dict[int, Array] = {}
        self.is_capturing = False
        self.recorded: list[Callable[[], None]] = []
        self.num_captures, self.num_replays = 0, 0
        self.uploads: list[int] = []
        """Bytes of each array that crossed."""
        self.downloads: list[int] = []
        self.room_bytes: int | None = None
        """What it has in all; None: enough."""

    def allocate(self, num_bytes: int) -> int:
        self._require_no_capture()
        assert num_bytes > 0
        taken = sum(map(len, self.memory.values()))
        if self.room_bytes is not None and taken + num_bytes > self.room_bytes:
            raise EngineError("cudaMalloc: CUDA error 2, out of memory")
        block = np.full(num_bytes + 256, _NOT_A_NUMBER, np.uint8)
        offset = -block.ctypes.data % 256
        aligned = block[offset : offset + num_bytes]
        self.memory[aligned.ctypes.data] = aligned
        return int(aligned.ctypes.data)

    def free(self, address: int) -> None:
        self._require_no_capture()
        self.memory.pop(address)[:] = _NOT_A_NUMBER

    def clear(self, address: int, num_bytes: int) -> None:
        self._require_no_capture()
        self.view(address, num_bytes)[:] = 0

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        self._require_no_capture()
        self.view(target, num_bytes)[:] = self.view(source, num_bytes)

    def upload(self, address: int, array: Array) -> None:
        self._require_no_capture()
        assert array.flags.c_contiguous
        self.uploads.append(array.nbytes)
        self.view(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)

    def download(self, array: Array, address: int) -> None:
        self._require_no_capture()
        assert array.flags.c_contiguous
        self.downloads.append(array.nbytes)
        array.reshape(-1).view(np.uint8)[:] = self.view(address, array.nbytes)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        self.is_capturing, self.recorded = True, []
        try:
            run()
        finally:
            self.is_capturing = False
        calls = self.recorded
        assert calls
        self.num_captures += 1

        def replay() -> None:
            self.num_replays += 1
            for call in calls:
                call()

        return replay

    def view(self, address: int, num_bytes: int) -> Array:
        """The bytes at an address, which must lie in one living block."""
        for start, block in self.memory.items():
            if start <= address and address + num_bytes <= start + len(block):
                return block[address - start : address - start + num_bytes]
        raise AssertionError(f"{num_bytes} bytes at {address:#x} are nobody's")

    def _require_no_capture(self) -> None:
        assert not self.is_capturing, "not allowed while a graph is captured"


@dataclass
class Failures:
    """What an engine's contexts fail at; each failure is told to the logger first, as TensorRT does."""

    context: bool = False
    sizes: bool = False
    """`update_device_memory_size_for_shapes` answers 0."""
    shape: str = ""
    """Name of an input that takes no shape."""
    capture: bool = False


class FakeEngine:
    """An engine of one of a bundle's graphs, which ONNX Runtime computes in float32."""

    weight_streaming_budget_v2 = 0
    streamable_weights_size = 0

    def __init__(
        self,
        device: HostDevice,
        path: Path,
        graph: GraphName,
        config: ModelConfig,
        limits: Limits,
        dtype: str,
        probes: Sequence[str] = (),
        stages: Sequence[DecoderStage] = (),
        *,
        gives_candidates: bool = False,
    ) -> None:
        """`probes` are outputs that the file's graph has beside those of the contract; `stages` of a cut decoder."""
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(path.parent)
        )
        contract = graph_contract(graph, config, dtype, stages)
        model = onnx.load(path, load_external_data=False)
        if gives_candidates:
            add_candidates(model, config)
            contract = with_candidates(contract, config)
        self.device, self.ort = device, ort.InferenceSession(model.SerializeToString(), options)
        capacity = {"L": limits.max_context}
        probed = [TensorSpec(name, dtype, ("any", "number"), "inside") for name in probes]
        outputs = (*contract.outputs, *probed)
        self.specs = {spec.name: spec for spec in (*contract.inputs, *outputs)}
        self.shapes = {
            name: tuple(capacity.get(str(dim), -1) if isinstance(dim, str) else dim for dim in spec.shape)
            for name, spec in self.specs.items()
        }
        self.input_names = [spec.name for spec in contract.inputs]
        self.output_names = [spec.name for spec in outputs]
        self.profiles = [
            dict(shape_ranges(contract, profile)) for profile in graph_profiles(graph, config, limits)
        ]
        self.contexts: list[FakeContext] = []
        self.failures = Failures()

    @property
    def num_io_tensors(self) -> int:
        return len(self.specs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_weight_streaming_automatic_budget(self) -> int:
        return 0

    def get_tensor_name(self, index: int) -> str:
        return list(self.specs)[index]

    def get_tensor_mode(self, name: str) -> Named:
        return SimpleNamespace(name="INPUT" if name in self.input_names else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> Named:
        return SimpleNamespace(name=_DTYPES[self.specs[name].dtype])

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        return self.shapes[name]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]:
        assert name in self.input_names
        shapes = self.range_of(name, profile_index)
        return [shapes.minimum, shapes.optimum, shapes.maximum]

    def range_of(self, name: str, profile: int) -> ShapeRange:
        static = self.shapes[name]
        return self.profiles[profile].get(name) or ShapeRange(static, static, static)

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return name.replace("present", "past") if name.startswith("present") else None

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return 1_000_000 * (profile_index + 1)

    def create_execution_context(self, strategy: Any) -> IExecutionContext | None:
        assert strategy == "user managed"
        assert HostDevice.selected is self.device
        if self.failures.context:
            RUN_LOG.add_error("[runtime.cpp] Error Code 2: no memory for a context")
            return None
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]


class FakeContext:
    """One `IExecutionContext`, RTX's."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.device = engine, engine.device
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.num_calls, self.num_setups = 0, 0
        self.capturable = itertools.chain(
            [False], itertools.repeat(True)
        )  # as if a kernel were still compiling

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle == self.device.stream
        self.profile = profile_index
        return 0 <= profile_index < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        if self.engine.failures.shape == name:
            RUN_LOG.add_error("[shapes.cpp] Error Code 3: not a shape of the profile")
            return False
        shapes = self.engine.range_of(name, self.profile)
        self.shapes[name] = shape
        self.num_setups += 1
        lowest, highest = shapes.minimum, shapes.maximum
        return len(shape) == len(lowest) and all(
            low <= size <= high for low, size, high in zip(lowest, shape, highest, strict=True)
        )

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        self.num_setups += 1
        return name in self.engine.specs and memory > 0 and memory % ALIGNMENT == 0

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """Of an output: known once all inputs have a shape."""
        self._require_shapes()
        return self._outputs(self.shapes, self.addresses)[name].shape

    def update_device_memory_size_for_shapes(self) -> int:
        self._require_shapes()
        if self.engine.failures.sizes:
            RUN_LOG.add_error("[sizes.cpp] Error Code 4: a shape is missing")
            return 0
        return self._needed_bytes()

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % ALIGNMENT == 0
        self.memory = (memory, size)
        self.num_setups += 1

    def is_stream_capturable(self, stream: int) -> bool:
        assert stream == self.device.stream
        return next(self.capturable)

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == self.device.stream
        assert HostDevice.selected is self.device, "another device is selected"
        self._require_complete()
        for name in self.engine.output_names:
            source = self.engine.get_aliased_input_tensor(name)
            assert source is None or self.addresses[name] == self.addresses[source], "a cache was moved"
        assert self.memory[1] >= self._needed_bytes()
        self.device.view(*self.memory)
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        if self.device.is_capturing and self.engine.failures.capture:
            RUN_LOG.add_error("[capture.cpp] Error Code 1: operation not permitted when stream is capturing")
            return False
        if self.device.is_capturing:
            self.device.recorded.append(self._replayed(shapes, addresses))
        else:
            self._compute(shapes, addresses)
        return True

    def _replayed(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> Callable[[], None]:
        num_setups, memory = self.num_setups, self.memory

        def replay() -> None:
            assert self.num_setups == num_setups, "the context of this graph was set up for another call"
            self.device.view(*memory)
            self._compute(shapes, addresses)

        return replay

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        self.num_calls += 1
        for name, array in self._outputs(shapes, addresses).items():
            stored = np.ascontiguousarray(array, numpy_dtype(self.engine.specs[name].dtype))
            self.device.view(addresses[name], stored.nbytes)[:] = stored.reshape(-1).view(np.uint8)

    def _outputs(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> dict[str, Array]:
        feeds = {}
        for name in self.engine.input_names:
            dtype = numpy_dtype(self.engine.specs[name].dtype)
            num_bytes = math.prod(shapes[name]) * dtype.itemsize
            bits = self.device.view(addresses[name], num_bytes) if num_bytes else np.zeros(0, np.uint8)
            array = bits.view(dtype).reshape(shapes[name])
            feeds[name] = array.astype(np.float32) if dtype == ml_dtypes.bfloat16 else array
        outputs = self.engine.ort.run(self.engine.output_names, feeds)
        return dict(zip(self.engine.output_names, outputs, strict=True))

    def _require_shapes(self) -> None:
        assert self.profile is not None
        assert set(self.shapes) == set(self.engine.input_names)

    def _require_complete(self) -> None:
        self._require_shapes()
        assert set(self.addresses) == set(self.engine.specs)

    def _needed_bytes(self) -> int:
        return 64 * sum(math.prod(shape) for name, shape in self.shapes.items() if "past" not in name)


def fake_bindings(name: str = "tensorrt_rtx") -> Bindings:
    """As much of the module as a session uses."""
    fake: Any = SimpleNamespace(
        __name__=name,
        __version__="1.7.1",
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
    )
    bindings: Bindings = fake
    return bindings


def keeps_to_the_interfaces(device: HostDevice, engine: FakeEngine) -> tuple[StreamDevice, ICudaEngine]:
    """Mypy checks the fakes here."""
    return device, engine
