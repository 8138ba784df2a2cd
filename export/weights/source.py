"""Where a graph's weights come from: the checkpoint's own bytes, or bytes that an export makes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from export.models.configuration import ModelConfig


class WeightSource(Protocol):
    """Gives every weight of a model as a value of a graph."""

    @property
    def config(self) -> ModelConfig:
        """The model's whose weights they are."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every weight by its published name. A tied head is not among them."""

    def value(self, graph: ir.Graph, name: str, shape: ir.Shape, dtype: ir.DataType) -> ir.Value:
        """A weight in the graph's dtype; may register initializers and append nodes, such as a `Cast`.

        Args:
            graph: receives them.
            name: published, e.g. `visual.merger.ln_q.weight`.
            shape: what the graph reads it as; the bytes may lie under another shape of that size.
            dtype: what the graph computes in.
        """

    def files(self) -> Sequence[Path]:
        """What a bundle must carry for it, new bytes included."""
