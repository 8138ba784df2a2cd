import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.errors import UserError
from export.weights.safetensors_file import read_safetensors_header


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def entry(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def write_file(path: Path, header: Any, data: bytes = b"\0" * 32, claimed: int | None = None) -> Path:
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
        entry([2, 3], [0, 24], "C32"),
        entry([2, 3], [0, 24], "I64"),
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


def write_text(path: Path, text: bytes, data_bytes: int = 32) -> Path:
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data_bytes))
    return path


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"a": entry([6], [0, 24]), "b": entry([4], [16, 32])}, "'b' overlaps the one before at byte"),
        ({"a": entry([8], [0, 32]), "b": entry([8], [0, 32])}, "'b' overlaps the one before at byte"),
        ({"a": entry([2], [0, 8]), "b": entry([4], [16, 32])}, "'b' leaves a hole before at byte"),
        ({"a": entry([6], [8, 32])}, "'a' leaves a hole before at byte"),
        ({"a": entry([6], [0, 24])}, "8 bytes at its end belong to no tensor"),
        ({}, "32 bytes at its end belong to no tensor"),
    ],
)
def test_tensors_that_do_not_follow_each_other_are_refused(tmp_path: Path, header: Any, problem: str):
    path = write_file(tmp_path / "gaps.safetensors", header)
    assert problem in message_of(lambda: read_safetensors_header(path))


def test_tensors_may_stand_in_any_order_and_be_empty(tmp_path: Path):
    header = {"b": entry([4], [16, 32]), "none": entry([0, 3], [16, 16]), "a": entry([4], [0, 16])}
    tensors = read_safetensors_header(write_file(tmp_path / "sound.safetensors", header))
    assert sorted(tensor.name for tensor in tensors) == ["a", "b", "none"]


SOUND = json.dumps({"a": entry([8], [0, 32])})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (SOUND.encode("utf-16"), "must begin with {"),
        (SOUND.encode("utf-16-le"), "cannot be read"),
        (b"\xef\xbb\xbf" + SOUND.encode(), "must begin with {"),
        (b" " + SOUND.encode(), "must begin with {"),
        (b'{"a\xff": ' + SOUND.encode()[6:], "cannot be read"),
        (SOUND.encode()[:-1] + b", " + SOUND.encode()[1:], "'a' stands in one object twice"),
        (SOUND.replace("[8]", "[8], " + '"shape": [8]').encode(), "'shape' stands in one object twice"),
        (SOUND.replace("32", "3.2e1").encode(), "has shape"),
        (SOUND.replace("32", "NaN").encode(), "not a finite number"),
        (SOUND.replace("32", "9" * 5000).encode(), "a number of 5000 digits"),
    ],
)
def test_a_header_that_readers_read_differently_is_refused(tmp_path: Path, text: bytes, problem: str):
    path = write_text(tmp_path / "odd.safetensors", text)
    assert problem in message_of(lambda: read_safetensors_header(path))


def test_a_shape_of_a_million_sizes_is_refused_at_once(tmp_path: Path):
    header = {"a": entry([2] * 1_000_000, [0, 32])}
    path = write_file(tmp_path / "bomb.safetensors", header)
    started = time.process_time()
    assert "has shape [2, 2" in message_of(lambda: read_safetensors_header(path))
    assert time.process_time() - started < 2


def test_a_message_stays_short_whatever_the_names_are(tmp_path: Path):
    for header in ({"x" * 10_000_000: entry([2], [0, 20])}, {"a": entry([1] * 1_000_000, ["y" * 1_000_000])}):
        path = write_file(tmp_path / "long.safetensors", header)
        assert len(message_of(lambda path=path: read_safetensors_header(path))) < 2000  # type: ignore[misc]


def test_a_header_of_a_hundred_megabytes_is_refused_without_reading_it(tmp_path: Path):
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_000))
        file.truncate(8 + 100_000_000)
    assert "its header claims 100000000 bytes" in message_of(lambda: read_safetensors_header(path))
