"""Quantized linear layers by reference: a graph reads the parts that a bundle's side file holds."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from export.quantization.side_file import StoredLinear
from export.weights.source import LinearValues
from export.weights.stored import cast, constant, ir_dtype, stored_value
from export.weights.values import read_values

_CODE_DTYPES = {"int4": "int4", "int8": "int8", "fp8": "float8_e4m3fn"}
"""By precision."""


def linear_values(graph: ir.Graph, linear: StoredLinear, dtype: ir.DataType) -> LinearValues:
    """Register a layer's parts as initializers of a graph; see `WeightSource.linear`."""
    num_outputs, num_columns = linear.shape[0], linear.num_columns
    codes = stored_value(
        graph,
        f"{linear.name}.codes",
        linear.parts["codes"],
        linear.shape if linear.precision == "fp8" else (num_columns, num_outputs),
        ir_dtype(_CODE_DTYPES[linear.precision]),
    )
    is_whole = linear.precision != "int4" and linear.num_blocks == 1
    scales = _part(graph, linear, "scales", (num_outputs,) if is_whole else (linear.num_blocks, num_outputs))
    offsets = None if linear.is_symmetric else _offsets(graph, linear, dtype)
    order = _part(graph, linear, "order", (num_columns,)) if "order" in linear.parts else None
    return LinearValues(
        linear,
        codes,
        _in_dtype(graph, scales, dtype),
        offsets,
        order,
        _activation_scale(graph, linear, dtype),
    )


def _part(graph: ir.Graph, linear: StoredLinear, part: str, sizes: Sequence[int]) -> ir.Value:
    stored = linear.parts[part]
    return stored_value(graph, f"{linear.name}.{part}", stored, sizes, ir_dtype(stored.dtype))


def _in_dtype(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    return value if value.dtype == dtype else cast(graph, value, dtype)


def _offsets(graph: ir.Graph, linear: StoredLinear, dtype: ir.DataType) -> ir.Value:
    """Zero points times scales.

    The scales are an initializer of their own over the same bytes: ONNX Runtime expands a weight whose scales have
    another reader. Zero points are dequantized by 1 where they are int8: TensorRT lets no other op read them.
    """
    sizes = (linear.num_blocks, linear.shape[0])
    zeros = _part(graph, linear, "zeros", sizes)
    scales = linear.parts["scales"]
    again = stored_value(graph, f"{linear.name}.zero_scales", scales, sizes, ir_dtype(scales.dtype))
    if zeros.dtype == ir.DataType.INT8:
        one = constant(graph, "quantization.one", np.ones((), dtype.numpy()))
        raised = _node(graph, "DequantizeLinear", [zeros, one], zeros, dtype)
    else:
        raised = cast(graph, zeros, dtype)
    return _node(graph, "Mul", [raised, _in_dtype(graph, again, dtype)], zeros, dtype)


def _node(
    graph: ir.Graph, op_type: str, inputs: list[ir.Value], named: ir.Value, dtype: ir.DataType
) -> ir.Value:
    name = f"/{named.name}/{op_type}"
    output = ir.Value(name=f"{name}_output_0", type=ir.TensorType(dtype), shape=named.shape)
    graph.append(ir.node(op_type, inputs, outputs=[output], name=name))
    return output


def _activation_scale(graph: ir.Graph, linear: StoredLinear, dtype: ir.DataType) -> ir.Value | None:
    """A constant of the graph, not of the file: whoever rounds by it must see that it is a scalar."""
    stored = linear.parts.get("activation_scale")
    if stored is None or not stored.length_bytes:
        return None
    return constant(
        graph, f"{linear.name}.input_scale", read_values(stored).reshape(()).astype(dtype.numpy())
    )
