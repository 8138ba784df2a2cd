"""Where a graph's weights come from: the checkpoint's own bytes, or bytes that an export makes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from export.models.configuration import ModelConfig
from export.quantization.side_file import StoredLinear


@dataclass(frozen=True)
class LinearValues:
    """A quantized linear layer's parts as values of a graph; of its N outputs, K inputs, and G blocks of inputs.

    w[n, k] = (codes - zeros) * scales, and its column k multiplies x[order[k]]: see
    `export.quantization.linear.QuantizedLinear`.
    """

    linear: StoredLinear
    """Its name, shape, precision, block and how x is rounded."""
    codes: ir.Value
    """INT4 [K, N], INT8 [K, N], or FLOAT8E4M3FN [N, K]."""
    scales: ir.Value
    """[G, N], or [N] of 8-bit codes with a scale for each output; in the graph's dtype."""
    offsets: ir.Value | None
    """[G, N], zero points times scales, in the graph's dtype; None: all are 0."""
    order: ir.Value | None
    """[K] int32; None: as they stand."""
    activation_scale: ir.Value | None
    """[] in the graph's dtype; None: x is not rounded, or each token by a scale of its own."""


class WeightSource(Protocol):
    """Gives every weight of a model as a value of a graph."""

    @property
    def config(self) -> ModelConfig:
        """The model's whose weights they are."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every weight by its published name, quantized ones too. A tied head is not among them."""

    def value(self, graph: ir.Graph, name: str, shape: ir.Shape, dtype: ir.DataType) -> ir.Value:
        """A weight in the graph's dtype; may register initializers and append nodes, such as a `Cast`.

        Args:
            graph: receives them.
            name: published, e.g. `visual.merger.ln_q.weight`.
            shape: what the graph reads it as; the bytes may lie under another shape of that size.
            dtype: what the graph computes in.
        """

    def linear(self, graph: ir.Graph, name: str, dtype: ir.DataType) -> LinearValues | None:
        """A weight's quantized parts, the small ones in the graph's dtype; None where it is not quantized.

        Args:
            graph: receives initializers, and nodes such as a `Cast`; ask once for each weight.
            name: published, of the weight.
            dtype: what the graph computes in.
        """

    def files(self) -> Sequence[Path]:
        """What a bundle must carry for it, new bytes included."""
