"""A device that ONNX Runtime computes on, and every array that crosses between it and the host, counted.

The device may be the CPU: what is then called a device is memory of this process, reached in the same ways, so that all
but the kernels runs where there is no GPU.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto, helper

from engines.session import EngineError

Kind = Literal["cuda", "cpu"]
_ERROR_AND_ABOVE = 3


@dataclass
class Device:
    """One device, and what moved to it and from it."""

    kind: Kind = "cuda"
    index: int = 0
    memory_limit_bytes: int | None = None
    """Of each graph's memory on the device; None leaves it to the device."""
    uploaded: Counter[str] = field(default_factory=Counter)
    """Bytes from the host, by what they are."""
    downloaded: Counter[str] = field(default_factory=Counter)
    """Bytes to the host, by what they are."""

    @property
    def name(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"

    def providers(self, *, has_graphs: bool = False) -> list[Any]:
        """What a session asks ONNX Runtime for. Nothing stands behind the GPU: what it cannot compute is an error.

        Args:
            has_graphs: let repeated calls be replayed as CUDA graphs.
        """
        if self.kind == "cpu":
            return ["CPUExecutionProvider"]
        options: dict[str, Any] = {
            "device_id": self.index,
            # Twice what is needed is not asked for: slots and weights take nearly all of a device.
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": 0,  # float32 means float32
            "enable_cuda_graph": int(has_graphs),
        }
        if self.memory_limit_bytes is not None:
            options["gpu_mem_limit"] = self.memory_limit_bytes
        # The host computes shapes, and nothing else: `graph.uncovered` says so before.
        return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]

    def allocate(self, shape: tuple[int, ...], element_type: int) -> ort.OrtValue:
        """Memory on the device; what it holds is undefined.

        Raises:
            EngineError: there is no room, or no such device.
        """
        try:
            return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), element_type, self.kind, self.index)
        except Exception as error:
            size = int(np.prod(shape)) * _element_bytes(element_type)
            raise EngineError(
                f"{self.name} has no room for {size:,} bytes ({error}). Ask for fewer slots or a shorter context."
            ) from error

    def upload(self, what: str, array: npt.NDArray[Any], value: ort.OrtValue) -> None:
        """Bring an array to memory of its shape and type."""
        self.uploaded[what] += array.nbytes
        value.update_inplace(np.ascontiguousarray(array))

    def download(self, what: str, value: ort.OrtValue) -> npt.NDArray[Any]:
        """Bring an array to the host."""
        array: npt.NDArray[Any] = value.numpy()
        self.downloaded[what] += array.nbytes
        return array

    def bind(self, binding: ort.IOBinding, name: str, memory: "Memory", *, is_output: bool = False) -> None:
        """Let a graph read or write memory of the device."""
        bind = binding.bind_output if is_output else binding.bind_input
        bind(name, self.kind, self.index, memory.element_type, list(memory.shape), memory.address)


@dataclass(frozen=True, eq=False)
class Memory:
    """A part of what was allocated, of which it keeps the whole alive."""

    value: ort.OrtValue
    element_type: int
    shape: tuple[int, ...]
    offset_bytes: int = 0

    @property
    def address(self) -> int:
        return int(self.value.data_ptr()) + self.offset_bytes

    @property
    def row_bytes(self) -> int:
        """Of one entry along the first axis."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * _element_bytes(self.element_type)

    def rows(self, start: int, stop: int) -> "Memory":
        """Entries of the first axis."""
        return Memory(
            self.value,
            self.element_type,
            (stop - start, *self.shape[1:]),
            self.offset_bytes + start * self.row_bytes,
        )


def allocated(device: Device, shape: tuple[int, ...], element_type: int) -> Memory:
    """New memory. An empty array has an address too."""
    return Memory(device.allocate(tuple(max(1, size) for size in shape), element_type), element_type, shape)


class Mover:
    """Joins, copies and casts rows on a device, by graphs of one or two nodes that are made when first needed."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._sessions: dict[tuple[int, int, int], ort.InferenceSession] = {}

    def joined(self, parts: list[Memory], element_type: int) -> Memory:
        """Rows one after another, in new memory of the device."""
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        joined = allocated(self._device, shape, element_type)
        binding = self._bound(parts, element_type)
        self._device.bind(binding, "joined", joined, is_output=True)
        self._run(parts, element_type, binding)
        return joined

    def to_host(self, what: str, part: Memory) -> npt.NDArray[np.float32]:
        """Rows as float32 in the host's memory."""
        binding = self._bound([part], TensorProto.FLOAT)
        array = np.empty(part.shape, np.float32)
        binding.bind_output("joined", "cpu", 0, np.float32, list(part.shape), array.ctypes.data)
        self._run([part], TensorProto.FLOAT, binding)
        self._device.downloaded[what] += array.nbytes
        return array

    def _bound(self, parts: list[Memory], element_type: int) -> ort.IOBinding:
        binding = self._session(parts, element_type).io_binding()
        for number, part in enumerate(parts):
            self._device.bind(binding, f"part_{number}", part)
        return binding

    def _run(self, parts: list[Memory], element_type: int, binding: ort.IOBinding) -> None:
        self._session(parts, element_type).run_with_iobinding(binding)

    def _session(self, parts: list[Memory], element_type: int) -> ort.InferenceSession:
        key = (len(parts), parts[0].element_type, element_type)
        if key not in self._sessions:
            options = ort.SessionOptions()
            options.log_severity_level = _ERROR_AND_ABOVE
            options.intra_op_num_threads = 1
            model = _joining_model(*key)
            self._sessions[key] = ort.InferenceSession(model, options, providers=self._device.providers())
        return self._sessions[key]


def _joining_model(number: int, from_type: int, to_type: int) -> bytes:
    names = [f"part_{i}" for i in range(number)]
    nodes = [
        helper.make_node("Concat", names, ["rows"], axis=0),
        helper.make_node("Cast", ["rows"], ["joined"], to=to_type),
    ]
    inputs = [helper.make_tensor_value_info(name, from_type, ["R", "C"]) for name in names]
    outputs = [helper.make_tensor_value_info("joined", to_type, ["R", "C"])]
    graph = helper.make_graph(nodes, "join", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


def _element_bytes(element_type: int) -> int:
    """Of one value of an ONNX element type."""
    return helper.tensor_dtype_to_np_dtype(element_type).itemsize
