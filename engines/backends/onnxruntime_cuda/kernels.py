"""Which operators ONNX Runtime's CUDA provider has kernels for, as far as our graphs use them, and in which types.

From its list of registered kernels (docs/OperatorKernels.md of ONNX Runtime 1.31). An operator without one would run on
the host, and its arrays would cross twice in every call.
"""

from collections.abc import Iterator, Mapping

import onnx
from onnx import TensorProto

from plugins.onnx.function_body import MICROSOFT_DOMAIN
from plugins.registry import OP_DOMAIN

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_WHOLE = frozenset({TensorProto.INT32, TensorProto.INT64})
_ANY = _FLOATS | _WHOLE | {TensorProto.BOOL}
_WIDE = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})

KERNELS: Mapping[tuple[str, str], frozenset[int]] = {
    ("", "Add"): _FLOATS | _WHOLE,
    ("", "And"): frozenset({TensorProto.BOOL}),
    ("", "Attention"): _FLOATS,
    ("", "Cast"): _ANY,
    ("", "Concat"): _ANY,
    ("", "Cos"): _WIDE,
    ("", "CumSum"): _WIDE | _WHOLE,
    ("", "Div"): _FLOATS | _WHOLE,
    ("", "Equal"): _WIDE | _WHOLE | {TensorProto.BOOL},
    ("", "Exp"): _FLOATS,
    ("", "Expand"): _ANY,
    ("", "Flatten"): _ANY,
    ("", "Gather"): _ANY,
    ("", "GatherElements"): _ANY,
    ("", "Gelu"): _FLOATS,
    ("", "Gemm"): _FLOATS,
    ("", "Identity"): _ANY,
    ("", "LayerNormalization"): _FLOATS,
    ("", "Less"): _WIDE | _WHOLE,
    ("", "LessOrEqual"): _WIDE | _WHOLE,
    ("", "Log"): _WIDE,
    ("", "Loop"): _ANY,
    ("", "MatMul"): _FLOATS,
    ("", "Mul"): _FLOATS | _WHOLE,
    ("", "Or"): frozenset({TensorProto.BOOL}),
    ("", "Pad"): _WIDE | {TensorProto.BOOL},
    ("", "RMSNormalization"): _FLOATS,
    ("", "Range"): frozenset({TensorProto.FLOAT}) | _WHOLE,
    ("", "ReduceMax"): _WIDE | _WHOLE,
    ("", "ReduceSum"): _FLOATS | _WHOLE,
    ("", "Reshape"): _ANY,
    ("", "RotaryEmbedding"): _FLOATS,
    ("", "Sigmoid"): _FLOATS,
    ("", "Sin"): _WIDE,
    ("", "Slice"): _ANY,
    ("", "Split"): _ANY,
    ("", "Squeeze"): _ANY,
    ("", "Sub"): _FLOATS | _WHOLE,
    ("", "TensorScatter"): _ANY,
    ("", "TopK"): _WIDE | _WHOLE,
    ("", "Transpose"): _ANY,
    ("", "Unsqueeze"): _ANY,
    ("", "Where"): _FLOATS | _WHOLE,
    (MICROSOFT_DOMAIN, "FusedMatMul"): _FLOATS,
    (MICROSOFT_DOMAIN, "GroupQueryAttention"): _FLOATS - {TensorProto.FLOAT},
    (MICROSOFT_DOMAIN, "MultiHeadAttention"): _FLOATS,
}
"""Types of an operator's main value: what it computes, or what it compares or moves."""

_NO_KERNEL_NEEDED = frozenset({"CastLike", "Constant", "Shape", "Size"})
"""Expanded or folded when the graph is opened, or answered from shapes, which the host knows."""
_BY_INPUT = frozenset({"Equal", "Less", "LessOrEqual", "And", "Or"})


def uncovered(model: onnx.ModelProto) -> list[str]:
    """Operators of a graph and of its functions that have no kernel, or not in the type that the graph gives them."""
    graph = model.graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    types |= {weight.name: weight.data_type for weight in graph.initializer}
    missing = {found for node in graph.node for found in _missing(node, types)}
    for function in model.functions:
        missing |= {found for node in function.node for found in _missing(node, {})}
    return sorted(missing)


def _missing(node: onnx.NodeProto, types: Mapping[str, int]) -> Iterator[str]:
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _missing(inner, {})
    if node.domain == OP_DOMAIN or node.op_type in _NO_KERNEL_NEEDED:
        return
    name = f"{node.domain}.{node.op_type}".lstrip(".")
    kernel = KERNELS.get((node.domain, node.op_type))
    found = types.get(node.input[0] if node.op_type in _BY_INPUT else node.output[0], 0)
    if kernel is None:
        yield name
    elif found and found not in kernel:
        yield f"{name} of {TensorProto.DataType.Name(found).lower()}"
