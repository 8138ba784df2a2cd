"""Quantized linear layers by reference: a graph reads the parts that a bundle's side file holds."""

import onnx_ir as ir

from export.quantization.side_file import StoredLinear
from export.weights.source import LinearValues
from export.weights.stored import cast, stored_value

_CODE_DTYPES = {"int4": ir.DataType.INT4, "int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}
_IR_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int8": ir.DataType.INT8,
    "int32": ir.DataType.INT32,
}


def linear_values(graph: ir.Graph, linear: StoredLinear, dtype: ir.DataType) -> LinearValues:
    """Register a layer's parts as initializers of a graph; see `WeightSource.linear`."""

    def part(name: str, as_dtype: ir.DataType | None) -> ir.Value | None:
        stored = linear.parts.get(name)
        if stored is None or not stored.length_bytes:
            return None
        value = stored_value(graph, f"{linear.name}.{name}", stored, stored.shape, _IR_DTYPES[stored.dtype])
        return value if as_dtype in {None, value.dtype} else cast(graph, value, as_dtype)

    num_outputs, num_inputs = linear.shape
    codes = stored_value(
        graph,
        f"{linear.name}.codes",
        linear.parts["codes"],
        linear.shape if linear.precision == "fp8" else (num_inputs, num_outputs),
        _CODE_DTYPES[linear.precision],
    )
    scales = part("scales", dtype)
    assert scales is not None, linear
    return LinearValues(
        linear, codes, scales, part("zeros", dtype), part("order", None), part("activation_scale", dtype)
    )
