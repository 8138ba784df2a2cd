"""One rank's part of a checkpoint's weights by reference: rows by offset, columns by what the graph says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from export.checkpoint.tensors import Checkpoint
from export.models.configuration import ModelConfig
from export.models.families import family_of
from export.weights.by_reference import ByReference
from export.weights.safetensors_file import StoredTensor
from export.weights.slices import METADATA_KEY, Columns, Slice
from export.weights.source import LinearValues
from export.weights.stored import cast, ir_dtype, stored_value


class Sliced:
    """The weights of an opened checkpoint that a rank has; see `export.weights.source.WeightSource`."""

    def __init__(self, checkpoint: Checkpoint, rank: int, num_ranks: int) -> None:
        """Args: checkpoint: whose decoder is not quantized.

        Raises:
            UserError: the model's sizes do not divide.
        """
        self._checkpoint = checkpoint
        self._whole = ByReference(checkpoint)
        self._family = family_of(checkpoint.config.model_type)
        self._config = self._family.rank_config(checkpoint.config, rank, num_ranks)

    @property
    def config(self) -> ModelConfig:
        """The rank's."""
        return self._config

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `WeightSource.shapes`; of the whole weights."""
        return self._whole.shapes()

    def files(self) -> Sequence[Path]:
        return self._whole.files()

    def linear(self, graph: ir.Graph, name: str, dtype: ir.DataType) -> LinearValues | None:
        del graph, name, dtype
        return None

    def value(self, graph: ir.Graph, name: str, shape: ir.Shape, dtype: ir.DataType) -> ir.Value:
        num_heads = self._checkpoint.config.decoder.num_key_value_heads
        part = self._family.slice_of(name, self._config, num_heads)
        if part is None:
            return self._whole.value(graph, name, shape, dtype)
        stored, sizes = self._checkpoint.tensors[name], shape.numpy()
        if part.axis == 0:
            rows = _rows(stored, part)
            assert sizes == rows.shape, (name, sizes, rows.shape)
            value = stored_value(graph, name, rows, sizes, ir_dtype(stored.dtype))
        else:
            columns = Columns(stored.shape[0], stored.shape[1], part.start, part.stop)
            assert sizes == columns.shape, (name, sizes, columns.shape)
            value = stored_value(graph, name, stored, sizes, ir_dtype(stored.dtype))
            assert value.const_value is not None
            value.const_value.metadata_props[METADATA_KEY] = columns.to_text()
        return value if value.dtype == dtype else cast(graph, value, dtype)


def _rows(stored: StoredTensor, part: Slice) -> StoredTensor:
    row_bytes = stored.length_bytes // stored.shape[0]
    shape = (part.stop - part.start, *stored.shape[1:])
    assert part.stop <= stored.shape[0], (stored, part)
    return replace(
        stored,
        shape=shape,
        offset_bytes=stored.offset_bytes + part.start * row_bytes,
        length_bytes=row_bytes * shape[0],
    )
