from pathlib import Path

import pytest

from export.errors import UserError
from export.files.json_object import parse_json_object, read_json_object


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1, "a": 1}', "the key 'a' stands in one object twice"),
        ('{"x": [{"b": {}, "b": []}]}', "the key 'b' stands in one object twice"),
        ('{"a": NaN}', "NaN is not a finite number"),
        ('{"a": -Infinity}', "-Infinity is not a finite number"),
        ('{"a": 1e999}', "1e999 is not a finite number"),
        ('{"a": %s}' % ("9" * 301), "a number of 301 digits"),
        ('{"a": %s}' % ("9" * 5000), "a number of 5000 digits"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"a":' * 100_000, "cannot be read as JSON"),
        ("[]", "must hold a JSON object, found list"),
        ("", "cannot be read as JSON"),
    ],
)
def test_text_that_is_not_one_plain_object_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UserError, match=r"config\.json") as caught:
        parse_json_object(text, "config.json")
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 500


def test_what_tools_write_is_read() -> None:
    largest = 1000000000000000019884624838656  # Transformers' "no limit" for a tokenizer
    assert parse_json_object(f'{{"a": {largest}, "b": 1e-5, "c": -0.0, "d": null}}', "x") == {
        "a": largest,
        "b": 1e-5,
        "c": 0.0,
        "d": None,
    }


@pytest.mark.parametrize("content", [b"\xff{}", "{}".encode("utf-16"), b"\xef\xbb\xbf{}"])
def test_a_file_that_is_no_utf_8_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        read_json_object(tmp_path / "config.json")


def test_a_file_larger_than_any_of_its_kind_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}" + b" " * 100)
    with pytest.raises(UserError, match="larger than 100 bytes"):
        read_json_object(tmp_path / "config.json", 100)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_a_message(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_json_object(tmp_path / name)
