"""Weights by reference: an initializer is (file, offset, length) inside a safetensors file.

Safetensors stores tensors row-major and little-endian as ONNX external data does, so no weight byte is read, converted
or copied. What an adapter changed is a file of the same kind, so this source gives merged weights too.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from export.checkpoint.tensors import Checkpoint
from export.models.configuration import ModelConfig
from export.weights.quantized import linear_values
from export.weights.source import LinearValues
from export.weights.stored import cast, ir_dtype, stored_value


class ByReference:
    """The weights of an opened checkpoint; see `export.weights.source.WeightSource`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    @property
    def config(self) -> ModelConfig:
        return self._checkpoint.config

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        stored = {name: tensor.shape for name, tensor in self._checkpoint.tensors.items()}
        return {**stored, **{name: linear.shape for name, linear in self._checkpoint.linears.items()}}

    def linear(self, graph: ir.Graph, name: str, dtype: ir.DataType) -> LinearValues | None:
        linear = self._checkpoint.linears.get(name)
        return None if linear is None else linear_values(graph, linear, dtype)

    def files(self) -> Sequence[Path]:
        return self._checkpoint.weight_files

    def value(self, graph: ir.Graph, name: str, shape: ir.Shape, dtype: ir.DataType) -> ir.Value:
        stored = self._checkpoint.tensors[name]
        sizes = shape.numpy()
        assert math.prod(sizes) == math.prod(stored.shape), (name, sizes, stored.shape)
        value = stored_value(graph, name, stored, sizes, ir_dtype(stored.dtype))
        return value if value.dtype == dtype else cast(graph, value, dtype)
