"""The tensors of a safetensors file, and where they lie.

Only the header is read: a file of 4 GB opens as fast as a tiny one. No torch.
"""

import hashlib
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from export.dtypes import FROM_SAFETENSORS, num_bytes
from export.errors import UserError
from export.files.json_object import json_object_from_bytes
from export.files.untrusted import open_regular

# The format allows 100 MB, which take 3 GB when they are parsed; that of the 72B model's largest file has 10 kB.
_MAX_HEADER_BYTES = 16 << 20
_MAX_RANK = 8
_SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class StoredTensor:
    """One tensor's bytes inside a safetensors file: row-major, little-endian, never copied."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int
    length_bytes: int


def read_safetensors_header(path: Path) -> list[StoredTensor]:
    """Read where each tensor lies, without its bytes, and check that together they are the whole file.

    The format: 8 bytes little-endian header length, a JSON header in UTF-8, then the tensors back to back, without
    overlaps and holes (safetensors specification). A file that two readers could read differently is refused.

    Raises:
        UserError: not a safetensors file, a dtype the family does not use, or a truncated file.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            header_bytes = struct.unpack("<Q", file.read(8))[0]
            if header_bytes > min(_MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"its header claims {header_bytes} bytes in a file of {size}")
            text = file.read(header_bytes)
        if not text.startswith(b"{"):
            raise ValueError("its header must begin with {")
        header = json_object_from_bytes(text, "its header")
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = [_stored_tensor(path, name, entry, 8 + header_bytes) for name, entry in entries.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, UserError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file: {error!s:.1000}.", "Download it again."
        ) from None
    end = max((tensor.offset_bytes + tensor.length_bytes for tensor in tensors), default=8 + header_bytes)
    if end > size:
        raise UserError(f"{path} is truncated: {size} bytes, expected {end}.", "Download it again.")
    if problem := _gap(tensors, 8 + header_bytes, size):
        raise UserError(f"{path} is not a readable safetensors file: {problem}.", "Download it again.")
    return tensors


def _gap(tensors: Iterable[StoredTensor], start: int, size: int) -> str | None:
    """Where the tensors do not follow each other from the header to the file's end; None if they do."""
    end = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset_bytes, tensor.length_bytes)):
        if tensor.offset_bytes != end:
            what = "overlaps the one before" if tensor.offset_bytes < end else "leaves a hole before"
            return f"{tensor.name!r:.200} {what} at byte {tensor.offset_bytes}"
        end += tensor.length_bytes
    return None if end == size else f"{size - end} bytes at its end belong to no tensor"


def _stored_tensor(path: Path, name: str, entry: Mapping[str, object], data_start: int) -> StoredTensor:
    shape, offsets, dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not (_is_sizes(shape) and _is_sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise ValueError(f"{name!r:.200} has shape {shape!r:.100} at {offsets!r:.100}")
    if not isinstance(dtype, str) or dtype not in FROM_SAFETENSORS:
        raise ValueError(
            f"{name!r:.200} has dtype {dtype!r:.100}, expected one of {', '.join(FROM_SAFETENSORS)}"
        )
    length = offsets[1] - offsets[0]
    if length != num_bytes(FROM_SAFETENSORS[dtype], math.prod(shape)):
        raise ValueError(f"{name!r:.200} of shape {shape} and dtype {dtype} cannot fill {length} bytes")
    return StoredTensor(
        name=name,
        path=path,
        dtype=FROM_SAFETENSORS[dtype],
        shape=tuple(shape),
        offset_bytes=data_start + offsets[0],
        length_bytes=length,
    )


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    """Few, so that their product is one of small numbers: a shape of a million entries takes minutes to multiply."""
    return (
        isinstance(value, list)
        and len(value) <= _MAX_RANK
        and all(type(item) is int and 0 <= item < 2**63 for item in value)
    )


def fingerprint_safetensors(path: Path) -> str:
    """Recognise a weight file without reading all of it: 147 GB of weights cost a few MB of reads.

    SHA-256 over the file's size, every tensor's name, dtype, shape and place, and the first 4 KiB of its bytes.
    It tells checkpoints and fine-tunes apart. It is no proof against a change further inside a tensor.

    Raises:
        UserError: as `read_safetensors_header`.
    """
    return fingerprint_of(path, read_safetensors_header(path))


def fingerprint_of(path: Path, tensors: Iterable[StoredTensor]) -> str:
    """`fingerprint_safetensors` of a file whose header was read.

    Raises:
        OSError: it cannot be read.
    """
    tensors = sorted(tensors, key=lambda tensor: (tensor.offset_bytes, tensor.name))
    digest = hashlib.sha256(struct.pack("<Q", path.stat().st_size))
    with path.open("rb") as file:
        for tensor in tensors:
            place = (tensor.name, tensor.dtype, tensor.shape, tensor.offset_bytes, tensor.length_bytes)
            digest.update(repr(place).encode())
            file.seek(tensor.offset_bytes)
            digest.update(file.read(min(tensor.length_bytes, _SAMPLE_BYTES)))
    return digest.hexdigest()
