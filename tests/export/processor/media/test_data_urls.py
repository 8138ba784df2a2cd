import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.errors import UserError
from export.processor.media import data_urls
from export.processor.media.data_urls import bytes_from_base64, bytes_from_data_url, source_from_text


def spellings(data):
    plain = base64.b64encode(data).decode()
    return {
        "plain": plain,
        "line breaks": base64.encodebytes(data).decode(),
        "MIME line breaks": "\r\n".join(plain[i : i + 76] for i in range(0, len(plain), 76)),
        "no padding": plain.rstrip("="),
        "URL-safe": base64.urlsafe_b64encode(data).decode(),
        "URL-safe, no padding": base64.urlsafe_b64encode(data).decode().rstrip("="),
    }


@given(st.binary(max_size=200))
def test_every_spelling_of_base64_is_read(data):
    for name, text in spellings(data).items():
        assert bytes_from_base64(text) == data, name


def test_large_files_are_read_in_steps(monkeypatch):
    monkeypatch.setattr(data_urls, "_STEP", 50)
    for size in range(140, 160):
        data = os.urandom(size)
        for name, text in spellings(data).items():
            assert bytes_from_base64(text) == data, (size, name)


@pytest.mark.parametrize("text", ["a", "ab$d", "abcd=efg", "ab=c", "\u00e9abc", "=" * 8])
def test_what_is_no_base64_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - of several kinds, and caught by its base
        bytes_from_base64(text)


@pytest.mark.parametrize(
    "head",
    [
        "data:image/png;base64,",
        "DATA:image/png;base64,",
        "data:;base64,",
        "data:image/png;name=a.png;BASE64,",
    ],
)
def test_every_head_of_a_data_url_is_read(head):
    data = bytes(range(256))
    for text in spellings(data).values():
        assert bytes_from_data_url(head + text, "image") == data
    escaped = base64.b64encode(data).decode().replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    assert bytes_from_data_url(head + escaped, "image") == data


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64",
        "data:image/png;base64,$$$",
        "data:image/png;base64,%41",
        "data:" + "x" * 300 + ",a",
        "data:,a",
    ],
)
def test_a_data_url_without_a_file_is_refused(url):
    with pytest.raises(UserError, match="data: URL"):
        source_from_text(url, "image")


def test_texts_that_hold_a_file_are_told_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = base64.b64encode(os.urandom(90)).decode().replace("/", "A")
    assert source_from_text(text, "image") == base64.b64decode(text)
    (tmp_path / text).write_bytes(b"")
    assert source_from_text(text, "image") == text, "a file of that very name"
    assert source_from_text("cat.png", "image") == "cat.png"
    assert source_from_text(["data:;base64,YQ", b"b"], "video") == [b"a", b"b"]
