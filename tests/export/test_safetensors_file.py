import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.errors import UserError
from export.safetensors_file import read_safetensors_header


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def entry(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def write_file(path: Path, header: Any, data: bytes = b"\0" * 64, claimed: int | None = None) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if claimed is None else claimed) + text + data)
    return path


def test_a_sound_header_is_read_with_offsets_from_the_files_start(tmp_path: Path):
    header = {
        "__metadata__": {"format": "pt"},
        "a": entry([2, 3], [0, 24]),
        "b": entry([4], [24, 32], "BF16"),
    }
    path = write_file(tmp_path / "a.safetensors", header)
    start = 8 + len(json.dumps(header))
    first, second = read_safetensors_header(path)
    assert (first.offset_bytes, first.length_bytes, first.shape) == (start, 24, (2, 3))
    assert (second.offset_bytes, second.length_bytes, second.dtype) == (start + 24, 8, "bfloat16")


@pytest.mark.parametrize(
    "bad",
    [
        entry([2, 3], [0, 20]),
        entry([2, 3], [24, 0]),
        entry([-2, -3], [0, 24]),
        entry([2.0, 3], [0, 24]),
        entry([True, 6], [0, 24]),
        entry("23", [0, 24]),
        entry([2, 3], [0]),
        entry([2, 3], [0, 24, 48]),
        entry([2, 3], None),
        entry([2, 3], [-24, 0]),
        entry([2, 3], [0, 24], "I32"),
        entry([2, 3], [0, 24], ["F32"]),
        entry([2**40, 2**40], [0, 24]),
        {"shape": [2, 3]},
        [],
        "tensor",
        None,
    ],
    ids=repr,
)
def test_an_entry_that_lies_is_refused(tmp_path: Path, bad):
    path = write_file(tmp_path / "lies.safetensors", {"good": entry([2], [0, 8]), "liar": bad})
    message = message_of(lambda: read_safetensors_header(path))
    assert f"{path} is not a readable safetensors file" in message


@pytest.mark.parametrize("header", [[], 3, "text", None], ids=repr)
def test_a_header_that_is_no_object_is_refused(tmp_path: Path, header):
    path = write_file(tmp_path / "no-object.safetensors", header)
    assert "not a readable safetensors file" in message_of(lambda: read_safetensors_header(path))


@pytest.mark.parametrize("claimed", [2**63, 2**40, 100_000_001, 400])
def test_a_header_length_beyond_the_file_is_refused_without_reading_it(tmp_path: Path, claimed):
    path = write_file(tmp_path / "long.safetensors", {"a": entry([2], [0, 8])}, claimed=claimed)
    message = message_of(lambda: read_safetensors_header(path))
    assert f"its header claims {claimed} bytes" in message


def test_a_deeply_nested_header_is_refused(tmp_path: Path):
    path = tmp_path / "deep.safetensors"
    text = b'{"a":' + b"[" * 100_000
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    assert "not a readable safetensors file" in message_of(lambda: read_safetensors_header(path))
