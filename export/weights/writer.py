"""A safetensors file written tensor by tensor: memory never holds more than one of them."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.dtypes import DTYPES, num_bytes
from export.weights.safetensors_file import StoredTensor, read_safetensors_header

_ENTRY_BYTES = 200
"""Of a header's entry beside its name: two places of 20 digits, a dtype and a shape."""
_PIECE_BYTES = 8 << 20
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class NewTensor:
    """A tensor that will be written."""

    name: str
    dtype: str
    """One of `export.dtypes` that the format has."""
    shape: tuple[int, ...]

    @property
    def length_bytes(self) -> int:
        return num_bytes(self.dtype, math.prod(self.shape))


def write_safetensors(path: Path, tensors: Sequence[NewTensor], bytes_of: Callable[[str], bytes]) -> None:
    """Write a new file: 8 bytes of header length, a JSON header, then the tensors back to back.

    Args:
        path: must not exist.
        tensors: in the order of their bytes.
        bytes_of: gives a tensor's values by its name, row-major and little-endian; called once for each.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.length_bytes
        header[tensor.name] = _entry(tensor.dtype, tensor.shape, start, end)
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    with path.open("xb") as file:
        file.write(_header(header, -(-len(text) // 8) * 8))
        for tensor in tensors:
            values = bytes_of(tensor.name)
            assert len(values) == tensor.length_bytes, tensor
            file.write(values)


def write_streamed(
    path: Path, tensors: Iterable[tuple[str, npt.NDArray[Any]]], *, most_names: Sequence[str]
) -> None:
    """Write a new file of tensors whose sizes are known only when each is made.

    The header stands before the values: room is left for it, and what it does not need are spaces.

    Args:
        path: must not exist.
        tensors: name and values, in the order of their bytes; written as they come.
        most_names: every name that may come.
    """
    room_bytes = 8 * (16 + sum(len(json.dumps(name)) + _ENTRY_BYTES for name in most_names) // 8)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    with path.open("xb") as file:
        file.seek(8 + room_bytes)
        for name, values in tensors:
            content = np.ascontiguousarray(values)
            end = start + content.nbytes
            header[name] = _entry(content.dtype.name, content.shape, start, end)
            file.write(content.reshape(-1).view(np.uint8).data)
            start = end
        file.seek(0)
        file.write(_header(header, room_bytes))


def write_copied(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Write a new file of stored tensors under other names, in pieces: a table of gigabytes costs a few megabytes.

    Args:
        path: must not exist.
        tensors: by their new names.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, stored in tensors.items():
        end = start + stored.length_bytes
        header[name] = _entry(stored.dtype, stored.shape, start, end)
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    with path.open("xb") as file:
        file.write(_header(header, -(-len(text) // 8) * 8))
        for stored in tensors.values():
            with stored.path.open("rb") as source:
                source.seek(stored.offset_bytes)
                left = stored.length_bytes
                while left:
                    piece = source.read(min(left, _PIECE_BYTES))
                    assert piece, stored
                    file.write(piece)
                    left -= len(piece)


def _entry(dtype: str, shape: Sequence[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": DTYPES[dtype].safetensors, "shape": list(shape), "data_offsets": [start, end]}


def _header(header: Mapping[str, object], size_bytes: int) -> bytes:
    """Its length and itself, filled with spaces to a multiple of 8: readers map the file, values start aligned."""
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) <= size_bytes, (len(text), size_bytes)
    return size_bytes.to_bytes(8, "little") + text.ljust(size_bytes)


def write_index(directory: Path, files: Sequence[Path]) -> None:
    """Write Hugging Face's index of several weight files; where two hold one name, the later is listed."""
    weight_map = {tensor.name: file.name for file in files for tensor in read_safetensors_header(file)}
    content = {
        "metadata": {"total_size": sum(file.stat().st_size for file in files)},
        "weight_map": weight_map,
    }
    (directory / INDEX_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
