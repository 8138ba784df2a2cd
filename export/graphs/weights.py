"""Initializers of a graph: weights from their source, each made once, and the small tables that are computed."""

from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from export.weights.source import WeightSource

IR_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int32": ir.DataType.INT32,
    "int64": ir.DataType.INT64,
}


class Weights:
    """Initializers of one graph, made when first asked for."""

    def __init__(self, graph: ir.Graph, source: WeightSource, dtype: str) -> None:
        """Args: dtype: what the graph computes in."""
        self._graph = graph
        self._source = source
        self._dtype = IR_DTYPES[dtype]
        self._names = source.shapes().keys()
        self._values: dict[str, ir.Value] = {}

    def of_source(self, name: str, shape: ir.Shape) -> ir.Value:
        """The weight of that published name, in the graph's dtype. A tied `lm_head` is the token embedding.

        Args:
            name: e.g. `visual.merger.ln_q.weight`.
            shape: what the graph reads it as.
        """
        if name == "lm_head.weight" and name not in self._names:
            name = "model.embed_tokens.weight"
        if name not in self._values:
            self._values[name] = self._source.value(self._graph, name, shape, self._dtype)
        return self._values[name]

    def under(self, prefix: str) -> Callable[[str, ir.Shape], ir.Value]:
        """A look-up for the parameters of the module at `prefix`, e.g. `model.layers.3`, by their paths in it."""
        return lambda path, shape: self.of_source(f"{prefix}.{path}", shape)

    def constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """A small table that is computed, not stored in the checkpoint."""
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self._graph.register_initializer(value)
        return value
