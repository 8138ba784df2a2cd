"""A safetensors file written tensor by tensor: memory never holds more than one of them."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.safetensors_file import read_safetensors_header

_DTYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class NewTensor:
    """A tensor that will be written."""

    name: str
    dtype: str
    """"float32", "float16" or "bfloat16"."""
    shape: tuple[int, ...]

    @property
    def length_bytes(self) -> int:
        return math.prod(self.shape) * _DTYPES[self.dtype][1]


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
        dtype, _ = _DTYPES[tensor.dtype]
        header[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers map the file: values start aligned
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            values = bytes_of(tensor.name)
            assert len(values) == tensor.length_bytes, tensor
            file.write(values)


def write_index(directory: Path, files: Sequence[Path]) -> None:
    """Write Hugging Face's index of several weight files; where two hold one name, the later is listed."""
    weight_map = {tensor.name: file.name for file in files for tensor in read_safetensors_header(file)}
    content = {
        "metadata": {"total_size": sum(file.stat().st_size for file in files)},
        "weight_map": weight_map,
    }
    (directory / INDEX_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
