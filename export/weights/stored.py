"""A stored tensor as a value of a graph: (file, offset, length), so that no byte of it is read."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from export.dtypes import DTYPES
from export.weights.safetensors_file import StoredTensor


def ir_dtype(dtype: str) -> ir.DataType:
    """A dtype of `export.dtypes` as ONNX IR's."""
    return ir.DataType[DTYPES[dtype].onnx]


def stored_value(
    graph: ir.Graph, name: str, stored: StoredTensor, sizes: Sequence[int], dtype: ir.DataType
) -> ir.Value:
    """A stored tensor as an initializer: its bytes where they lie, read as `dtype` in the shape `sizes`."""
    tensor = ir.ExternalTensor(
        location=stored.path.name,
        offset=stored.offset_bytes,
        length=stored.length_bytes,
        dtype=dtype,
        shape=ir.Shape(sizes),
        name=name,
    )
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(sizes), const_value=tensor)
    graph.register_initializer(value)
    return value


def cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Append a `Cast` to the graph's dtype."""
    name = f"/{value.name}/Cast"
    output = ir.Value(name=f"{name}_output_0", type=ir.TensorType(dtype), shape=value.shape)
    graph.append(ir.node("Cast", [value], {"to": int(dtype)}, outputs=[output], name=name))
    return output


def constant(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """A small initializer that is computed, not stored; made once under a name."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    graph.register_initializer(value)
    return value
