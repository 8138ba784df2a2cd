"""Facts of an ONNX graph: inputs, outputs, operators, functions, weights. Weight bytes are never read."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from export.dtypes import DTYPES
from export.errors import UserError
from export.files.untrusted import read_bounded_bytes
from export.weights.external_data import MAX_GRAPH_BYTES

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class GraphTensor:
    """An input or output."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    doc: str


@dataclass(frozen=True)
class FunctionFacts:
    """A model-local function: an op's body in this file."""

    name: str
    num_calls: int
    num_nodes: int
    takes_plugin: bool
    """Its calls ask TensorRT for a plugin; the body is for everyone else."""


@dataclass(frozen=True)
class WeightFacts:
    """All weights of one dtype."""

    dtype: str
    num_tensors: int
    num_values: int
    bytes: int


@dataclass(frozen=True)
class ModuleFacts:
    """The weights below one module of the model, such as `model.layers.3.mlp.gate_proj`."""

    name: str
    num_values: int
    bytes: int


@dataclass(frozen=True)
class GraphFacts:
    """What `inspect` shows of a graph."""

    path: str
    ir_version: int
    opsets: dict[str, int]
    producer: str
    doc: str
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    operators: dict[str, int]
    functions: tuple[FunctionFacts, ...]
    weights: tuple[WeightFacts, ...]
    modules: tuple[ModuleFacts, ...]
    weight_files: tuple[str, ...]


def graph_facts_from_file(path: Path) -> GraphFacts:
    """Read a graph without its external weights.

    Raises:
        UserError: the file cannot be read or is no ONNX model.
    """
    model = _load(path)
    graph = model.graph
    operators = Counter(_qualified(node.domain, node.op_type) for node in graph.node)
    plugins = {
        _qualified(node.domain, node.op_type)
        for node in graph.node
        if any(attribute.name == "plugin_namespace" for attribute in node.attribute)
    }
    initializers = {tensor.name for tensor in graph.initializer}
    return GraphFacts(
        path=str(path),
        ir_version=model.ir_version,
        opsets={opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        doc=model.doc_string,
        inputs=tuple(_tensor_facts(value) for value in graph.input if value.name not in initializers),
        outputs=tuple(_tensor_facts(value) for value in graph.output),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        functions=tuple(
            FunctionFacts(name, operators[name], len(function.node), name in plugins)
            for function in model.functions
            for name in [_qualified(function.domain, function.name)]
        ),
        weights=_weight_facts(graph.initializer),
        modules=_module_facts(graph.initializer),
        weight_files=tuple(sorted(_external_files(graph.initializer))),
    )


def _load(path: Path) -> "onnx.ModelProto":
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(read_bounded_bytes(path, MAX_GRAPH_BYTES))
    except (OSError, ValueError, DecodeError) as error:  # a name with a NUL is a ValueError
        raise UserError(
            f"{path} cannot be read as an ONNX model: {error}.", "Give a bundle's directory or an .onnx file."
        ) from None
    # Protobuf takes many a file for an empty or odd message.
    if not model.ir_version or not model.graph.node:
        raise UserError(f"{path} is not an ONNX model.", "Give a bundle's directory or an .onnx file.")
    return model


def _qualified(domain: str, name: str) -> str:
    return name if domain in {"", "ai.onnx"} else f"{domain}::{name}"


def _dtype_name(element_type: int) -> str:
    import onnx

    known = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
    name = str(known.get(element_type, "unknown"))
    return {"float": "float32", "double": "float64"}.get(name, name)


def _tensor_facts(value: "onnx.ValueInfoProto") -> GraphTensor:
    tensor = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim
    )
    return GraphTensor(value.name, _dtype_name(tensor.elem_type), shape, value.doc_string)


def _weight_facts(initializers: Iterable["onnx.TensorProto"]) -> tuple[WeightFacts, ...]:
    num_tensors: Counter[int] = Counter()
    num_values: Counter[int] = Counter()
    for tensor in initializers:
        num_tensors[tensor.data_type] += 1
        num_values[tensor.data_type] += prod(tensor.dims)
    return tuple(
        WeightFacts(
            _dtype_name(dtype),
            num_tensors[dtype],
            num_values[dtype],
            num_values[dtype] * _bits(dtype) // 8,
        )
        for dtype in num_tensors
    )


def _module_facts(initializers: Iterable["onnx.TensorProto"]) -> tuple[ModuleFacts, ...]:
    """By module, in the graph's order: a weight's name without its last part (`weight`, `bias`)."""
    num_values: Counter[str] = Counter()
    num_bytes: Counter[str] = Counter()
    for tensor in initializers:
        module = tensor.name.rpartition(".")[0] or tensor.name
        num_values[module] += prod(tensor.dims)
        num_bytes[module] += prod(tensor.dims) * _bits(tensor.data_type) // 8
    return tuple(ModuleFacts(name, num_values[name], num_bytes[name]) for name in num_values)


def _bits(element_type: int) -> int:
    """Of one value as a file holds it: values of 4 bits lie packed, while NumPy gives each a byte."""
    from onnx.helper import tensor_dtype_to_np_dtype

    dtype = tensor_dtype_to_np_dtype(element_type)
    return DTYPES[dtype.name].bits if dtype.name in DTYPES else 8 * int(dtype.itemsize)


def _external_files(initializers: Iterable["onnx.TensorProto"]) -> set[str]:
    return {
        entry.value for tensor in initializers for entry in tensor.external_data if entry.key == "location"
    }
