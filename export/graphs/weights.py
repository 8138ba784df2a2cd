"""How do a graph's initializers point into the checkpoint's own bytes?

An initializer is (file, offset, length) inside a safetensors file, which stores tensors row-major and little-endian
as ONNX external data does. No weight byte is read, converted or copied.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from export.checkpoint import Checkpoint

IR_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int32": ir.DataType.INT32,
    "int64": ir.DataType.INT64,
}


class Weights:
    """Initializers of one graph, made when first asked for."""

    def __init__(self, graph: ir.Graph, checkpoint: Checkpoint, dtype: str) -> None:
        """Args: dtype: what the graph computes in; weights stored in another dtype get a `Cast`."""
        self._graph = graph
        self._checkpoint = checkpoint
        self._dtype = IR_DTYPES[dtype]
        self._values: dict[str, ir.Value] = {}

    def of_checkpoint(self, name: str, shape: ir.Shape) -> ir.Value:
        """The weight of that published name, in the graph's dtype. A tied `lm_head` is the token embedding.

        Args:
            name: e.g. `visual.merger.ln_q.weight`.
            shape: what the graph reads it as; the bytes in the checkpoint may lie under another shape of that size.
        """
        if name == "lm_head.weight" and name not in self._checkpoint.tensors:
            name = "model.embed_tokens.weight"
        if name not in self._values:
            self._values[name] = self._in_graph_dtype(self._stored(name, shape))
        return self._values[name]

    def under(self, prefix: str) -> Callable[[str, ir.Shape], ir.Value]:
        """A look-up for the parameters of the module at `prefix`, e.g. `model.layers.3`, by their paths in it."""
        return lambda path, shape: self.of_checkpoint(f"{prefix}.{path}", shape)

    def constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """A small table that is computed, not stored in the checkpoint."""
        return self._register(name, ir.Tensor(array, name=name), array.shape)

    def _stored(self, name: str, shape: ir.Shape) -> ir.Value:
        stored = self._checkpoint.tensors[name]
        sizes = shape.numpy()
        assert math.prod(sizes) == math.prod(stored.shape), (name, sizes, stored.shape)
        tensor = ir.ExternalTensor(
            location=stored.path.name,
            offset=stored.offset_bytes,
            length=stored.length_bytes,
            dtype=IR_DTYPES[stored.dtype],
            shape=ir.Shape(sizes),
            name=name,
        )
        return self._register(name, tensor, sizes)

    def _register(self, name: str, tensor: ir.TensorProtocol, shape: tuple[int, ...]) -> ir.Value:
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape), const_value=tensor
        )
        self._graph.register_initializer(value)
        return value

    def _in_graph_dtype(self, value: ir.Value) -> ir.Value:
        if value.dtype == self._dtype:
            return value
        name = f"/{value.name}/Cast"
        output = ir.Value(name=f"{name}_output_0", type=ir.TensorType(self._dtype), shape=value.shape)
        self._graph.append(ir.node("Cast", [value], {"to": int(self._dtype)}, outputs=[output], name=name))
        return output
