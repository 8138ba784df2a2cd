"""Whether a graph's weights lie where the manifest says: inside of a tensor of a recorded weight file, nowhere else.

An engine holds the bytes that a graph points to. A graph that points to another file, or beyond the end of one, would
bake a stranger's choice of this machine's bytes into it.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.weights.safetensors_file import StoredTensor
from export.weights.slices import Columns, columns_text

if TYPE_CHECKING:
    import onnx

MAX_GRAPH_BYTES = 1 << 28
"""A graph holds no weights: that of the 72B model has a few MB."""

_MAX_RANK = 8
_MAX_LISTED = 10


def graph_problems(content: bytes, weights: Mapping[str, Sequence[StoredTensor]]) -> list[str]:
    """What is wrong with a graph's bytes, the first few; none for a sound one.

    Args:
        content: a serialized ONNX model.
        weights: tensors of each weight file that the manifest records, by the file's name.
    """
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - the rest of a bundle opens without it

    try:
        model: onnx.ModelProto = _onnx_messages().ModelProto.FromString(content)
    except DecodeError as error:
        return [f"is not an ONNX graph ({error})"]
    if not model.graph.output:
        return ["is not an ONNX graph: it has no outputs"]
    extents = {name: _Extents(tensors) for name, tensors in weights.items()}
    problems = [
        f"{tensor.name or 'a tensor'}: {problem}"
        for tensor in model.graph.initializer
        if (problem := _problem(tensor, extents))
    ]
    problems += [
        f"{tensor.name or 'a tensor'}: only a weight of the graph itself may lie in another file"
        for tensor in _other_tensors(model)
        if is_external(tensor)
    ]
    more = len(problems) - _MAX_LISTED
    return problems[:_MAX_LISTED] + ([f"and {more} more"] if more > 0 else [])


@cache
def _onnx_messages() -> Any:
    """The module of ONNX's messages by itself: importing `onnx` for it would take NumPy and 0.2 s with it."""
    package = find_spec("onnx")
    assert package is not None, "onnx is a dependency"
    assert package.origin is not None, "onnx is a package"
    spec = spec_from_file_location("_onnx_messages", Path(package.origin).with_name("onnx_ml_pb2.py"))
    assert spec is not None, package.origin
    assert spec.loader is not None, package.origin
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_external(tensor: "onnx.TensorProto") -> bool:
    """True where the tensor's bytes are not in the graph."""
    return bool(tensor.external_data) or tensor.data_location == tensor.EXTERNAL


class _Extents:
    """The bytes of a file's tensors, to be asked for one that holds a range."""

    def __init__(self, tensors: Iterable[StoredTensor]) -> None:
        ordered = sorted((tensor.offset_bytes, tensor.length_bytes) for tensor in tensors)
        self._starts = [start for start, _ in ordered]
        self._ends = [start + length for start, length in ordered]

    def hold(self, start: int, end: int) -> bool:
        place = bisect_right(self._starts, start) - 1
        return place >= 0 and end <= self._ends[place]


def _problem(tensor: "onnx.TensorProto", extents: Mapping[str, _Extents]) -> str | None:
    """Why the bytes of a graph's weight are not to be read; None where they are sound or in the graph."""
    if not is_external(tensor):
        return None
    place = {entry.key: entry.value for entry in tensor.external_data}
    location, offset, length = place.get("location", ""), place.get("offset", ""), place.get("length", "")
    if location not in extents:
        return f"lies in {location!r:.200}, which is no weight file of the manifest"
    if not (_is_size(offset) and _is_size(length)):
        return f"offset and length must be sizes, found {offset!r:.40} and {length!r:.40}"
    start, size = int(offset), int(length)
    if not extents[location].hold(start, start + size):
        return f"bytes {start} to {start + size} are not inside of a tensor of {location}"
    bits = _bits().get(tensor.data_type)
    if bits is None or len(tensor.dims) > _MAX_RANK or any(dim < 0 for dim in tensor.dims):
        return f"has type {tensor.data_type} and {len(tensor.dims)} dimensions, which no weight has"
    return _size_problem(tensor, size, bits)


def _size_problem(tensor: "onnx.TensorProto", size: int, bits: int) -> str | None:
    text = columns_text(tensor)
    if text is None:
        expected = (math.prod(tensor.dims) * bits + 7) // 8
        return None if size == expected else f"has {size} bytes, its shape needs {expected}"
    columns = Columns.from_text(text)
    if columns is None or columns.shape != tuple(tensor.dims) or bits < 8:
        return f"means the columns {text!r:.100}, which are none of its {list(tensor.dims)} values"
    expected = columns.rows * columns.columns * bits // 8
    return None if size == expected else f"has {size} bytes, the matrix of its columns needs {expected}"


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _bits() -> dict[int, int]:
    """Bits of one value of each type that a weight may have."""
    types = _onnx_messages().TensorProto
    return {
        types.FLOAT: 32,
        types.FLOAT16: 16,
        types.BFLOAT16: 16,
        types.INT64: 64,
        types.INT32: 32,
        types.INT8: 8,
        types.UINT8: 8,
        types.FLOAT8E4M3FN: 8,
        types.FLOAT8E5M2: 8,
        types.INT4: 4,
        types.UINT4: 4,
        types.FLOAT4E2M1: 4,
    }


def _other_tensors(model: "onnx.ModelProto") -> Iterator["onnx.TensorProto"]:
    """Every tensor of a model but the weights of its graph: in attributes, functions, graphs inside of nodes."""
    inner: list[onnx.GraphProto] = []
    for training in model.training_info:
        inner += [training.initialization, training.algorithm]
    yield from _sparse_tensors(model.graph.sparse_initializer)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    attributes = [default for function in model.functions for default in function.attribute_proto]
    while nodes or attributes or inner:
        attributes += [attribute for node in nodes for attribute in node.attribute]
        nodes = []
        for attribute in attributes:
            yield from (attribute.t, *attribute.tensors)
            yield from _sparse_tensors((attribute.sparse_tensor, *attribute.sparse_tensors))
            inner += [attribute.g] if attribute.HasField("g") else []
            inner += attribute.graphs
        attributes = []
        for graph in inner:
            yield from graph.initializer
            yield from _sparse_tensors(graph.sparse_initializer)
            nodes += graph.node
        inner = []


def _sparse_tensors(sparse: "Iterable[onnx.SparseTensorProto]") -> Iterator["onnx.TensorProto"]:
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)
