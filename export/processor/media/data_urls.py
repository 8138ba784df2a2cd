"""File bytes out of JSON: data: URLs and base64 in the spellings that clients write."""

import binascii
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.errors import UserError

_STEP = 1 << 20  # characters: one call for a large file would let no other thread run
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")  # the URL-safe alphabet of RFC 4648, section 5
_SPACE = b" \t\r\n"  # Java's MIME encoder, Python's encodebytes and the tool `base64` break lines
_SHORTEST_FILE_CHARACTERS = 64
_ESCAPES = {
    "%2B": "+",
    "%2b": "+",
    "%2F": "/",
    "%2f": "/",
    "%3D": "=",
    "%3d": "=",
}  # of base64's signs in a URL
_DATA_URL = re.compile(r"data:([^,]{0,256}),", re.IGNORECASE)


def is_data_url(text: str) -> bool:
    return text[:5].lower() == "data:"


def source_from_text(source: Any, what: str) -> Any:
    """A picture or video whose bytes stand in a text, as bytes; anything else, a path above all, as it is.

    Lists, as of a video's frames, are looked through.

    Raises:
        UserError: a data: URL without a file in it.
    """
    if isinstance(source, list | tuple):
        return [source_from_text(item, what) for item in source]
    if not isinstance(source, str):
        return source
    if is_data_url(source):
        try:
            return bytes_from_data_url(source, what)
        except ValueError:
            raise UserError(f"The {what} in the data: URL is no base64.") from None
    if looks_like_base64(source) and not _is_path(source):
        try:
            return bytes_from_base64(source)
        except ValueError:
            return source
    return source


def _is_path(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long for a name, for one
        return False


def bytes_from_data_url(url: str, what: str) -> bytes:
    """The file in a data: URL (RFC 2397).

    Raises:
        UserError: it is no base64 by its own head; the message names `what` it was to hold.
        ValueError: its data are no base64.
    """
    head = _DATA_URL.match(url)
    if head is None or head[1].rpartition(";")[2].strip().lower() != "base64":
        raise UserError(f"A data: URL must be base64: data:{what}/...;base64,....")
    payload = url[head.end() :]
    for escape, character in _ESCAPES.items():
        if "%" in payload:
            payload = payload.replace(escape, character)
    return bytes_from_base64(payload)


def bytes_from_base64(text: str) -> bytes:
    """Decode base64 of either alphabet, with or without padding and line breaks.

    Raises:
        ValueError: it is none.
    """
    return b"".join(_decoded(text))


def looks_like_base64(text: str) -> bool:
    """Whether a text that names no file can be one itself: long enough, and of base64's characters at its start."""
    return len(text) >= _SHORTEST_FILE_CHARACTERS and bool(re.fullmatch(r"[A-Za-z0-9+/=_\s-]+", text[:1024]))


def _decoded(text: str) -> Iterator[bytes]:
    """In steps of whole groups of four characters."""
    rest, is_ended = b"", False
    for start in range(0, max(len(text), 1), _STEP):
        digits = rest + text[start : start + _STEP].encode("ascii").translate(_STANDARD_ALPHABET, _SPACE)
        is_last = start + _STEP >= len(text)
        if is_last:
            digits += b"=" * (-len(digits) % 4)
        whole = len(digits) // 4 * 4
        if is_ended and digits:
            raise ValueError("data after the padding")
        is_ended = digits.endswith(b"=", 0, whole)
        yield binascii.a2b_base64(digits[:whole], strict_mode=True)
        rest = digits[whole:]
