"""A part of a stored tensor as a weight of a graph: which, how a graph says so, and its values.

Rows lie together, so a graph points at them as at any weight. Columns do not: the graph points at the whole tensor and
says beside it which columns it means, and whoever opens the graph hands them over from memory. No weight byte is
written for either.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

METADATA_KEY = "qv.slice"
"""Of an initializer's metadata, where it is columns of what it points at."""


@dataclass(frozen=True)
class Slice:
    """From `start` to before `stop` along an axis."""

    axis: int
    start: int
    stop: int

    @classmethod
    def of(cls, axis: int, start: int, size: int) -> "Slice":
        """`size` from `start` on."""
        return cls(axis, start, start + size)


@dataclass(frozen=True)
class Columns:
    """Columns `start` to before `stop` of a stored matrix [rows, columns]."""

    rows: int
    columns: int
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, int]:
        return (self.rows, self.stop - self.start)

    def to_text(self) -> str:
        """For a graph's metadata."""
        return json.dumps([self.rows, self.columns, self.start, self.stop])

    @classmethod
    def from_text(cls, text: str) -> "Columns | None":
        """As a graph has it, whoever wrote that; None: no sound columns."""
        try:
            values = json.loads(text) if len(text) < 200 else None
        except ValueError:
            return None
        if (
            not isinstance(values, list)
            or len(values) != 4
            or not all(type(value) is int for value in values)
        ):
            return None
        found = cls(*values)
        return found if found.rows > 0 and 0 <= found.start < found.stop <= found.columns else None


def columns_text(tensor: "onnx.TensorProto") -> str | None:
    """What an initializer says about its columns; None where it is all that it points at."""
    return next((entry.value for entry in tensor.metadata_props if entry.key == METADATA_KEY), None)


def columns_of(tensor: "onnx.TensorProto") -> Columns | None:
    """The columns that an initializer of a checked graph means; None where it is all that it points at."""
    text = columns_text(tensor)
    columns = None if text is None else Columns.from_text(text)
    assert text is None or columns is not None, tensor.name
    return columns
