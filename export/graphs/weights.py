"""Initializers of a graph: weights from their source, each made once, and the small tables that are computed."""

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from export.weights.source import LinearValues, WeightSource
from export.weights.stored import ir_dtype


class Weights:
    """Initializers of one graph, made when first asked for."""

    def __init__(self, graph: ir.Graph, source: WeightSource, dtype: str) -> None:
        """Args: dtype: what the graph computes in."""
        self._graph = graph
        self._source = source
        self._dtype = ir_dtype(dtype)
        self._names = source.shapes().keys()
        self._values: dict[str, ir.Value] = {}
        self._linears: dict[str, LinearValues | None] = {}

    def value(self, name: str, shape: ir.Shape) -> ir.Value:
        """The weight of that published name, in the graph's dtype. A tied `lm_head` is the token embedding.

        Args:
            name: e.g. `visual.merger.ln_q.weight`.
            shape: what the graph reads it as.
        """
        name = self._stored(name)
        if name not in self._values:
            self._values[name] = self._source.value(self._graph, name, shape, self._dtype)
        return self._values[name]

    def linear(self, name: str) -> LinearValues | None:
        """The same as a quantized linear; None: its source has it as a plain tensor."""
        name = self._stored(name)
        if name not in self._linears:
            self._linears[name] = self._source.linear(self._graph, name, self._dtype)
        return self._linears[name]

    def under(self, prefix: str) -> "WeightsUnder":
        """A look-up for the parameters of the module at `prefix`, e.g. `model.layers.3`, by their paths in it."""
        return WeightsUnder(self, prefix)

    def _stored(self, name: str) -> str:
        is_tied = name == "lm_head.weight" and name not in self._names
        return "model.embed_tokens.weight" if is_tied else name

    def constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """A small table that is computed, not stored in the checkpoint."""
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self._graph.register_initializer(value)
        return value


@dataclass(frozen=True)
class WeightsUnder:
    """The weights of one module, by their paths in it."""

    weights: Weights
    prefix: str

    def value(self, path: str, shape: ir.Shape) -> ir.Value:
        """See `Weights.value`."""
        return self.weights.value(f"{self.prefix}.{path}", shape)

    def linear(self, path: str) -> LinearValues | None:
        """See `Weights.linear`."""
        return self.weights.linear(f"{self.prefix}.{path}")
