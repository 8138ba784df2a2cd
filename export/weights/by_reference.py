"""Weights by reference: an initializer is (file, offset, length) inside a safetensors file.

Safetensors stores tensors row-major and little-endian as ONNX external data does, so no weight byte is read, converted
or copied. What an adapter changed is a file of the same kind, so this source gives merged weights too.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from export.checkpoint import Checkpoint
from export.models.configuration import ModelConfig

_IR_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}


class ByReference:
    """The weights of an opened checkpoint; see `export.weights.source.WeightSource`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    @property
    def config(self) -> ModelConfig:
        return self._checkpoint.config

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self._checkpoint.tensors.items()}

    def files(self) -> Sequence[Path]:
        return self._checkpoint.weight_files

    def value(self, graph: ir.Graph, name: str, shape: ir.Shape, dtype: ir.DataType) -> ir.Value:
        stored = self._checkpoint.tensors[name]
        sizes = shape.numpy()
        assert math.prod(sizes) == math.prod(stored.shape), (name, sizes, stored.shape)
        tensor = ir.ExternalTensor(
            location=stored.path.name,
            offset=stored.offset_bytes,
            length=stored.length_bytes,
            dtype=_IR_DTYPES[stored.dtype],
            shape=ir.Shape(sizes),
            name=name,
        )
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(sizes), const_value=tensor
        )
        graph.register_initializer(value)
        return value if value.dtype == dtype else _cast(graph, value, dtype)


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    name = f"/{value.name}/Cast"
    output = ir.Value(name=f"{name}_output_0", type=ir.TensorType(dtype), shape=value.shape)
    graph.append(ir.node("Cast", [value], {"to": int(dtype)}, outputs=[output], name=name))
    return output
