"""Reads a request's JSON, whose long strings may be whole pictures, without holding the interpreter for long.

The standard library parses in one call that lets no other thread run: 54 MB of empty lists take five seconds. So
strings are found first, in small steps; long ones, which pictures are, are taken out; what is left is bounded.
"""

import json
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from export.errors import UserError
from export.files.checks import MAX_LEVELS, is_too_deep

_LONG_STRING_BYTES = 1 << 16
_STEP_BYTES = 1 << 20
_NEVER_PLAIN = bytes(range(0x20)) + b"\\"
_BACKSLASH = ord("\\")
_NEAR_BYTES = 64


Bytes = bytes | bytearray


def parse_bounded_json(
    data: Bytes, name: str, *, max_bytes: int, max_text_bytes: int, max_structure_bytes: int
) -> Any:
    """Parse JSON text.

    Args:
        data: UTF-8.
        name: what messages call it.
        max_bytes: of all.
        max_text_bytes: of all but the long strings that hold no escapes (base64 is such).
        max_structure_bytes: outside of strings: brackets, commas, numbers and white space; half as many strings.

    Raises:
        UserError: over a limit, not UTF-8, not JSON, or nested too deeply.
    """
    if len(data) > max_bytes:
        raise UserError(f"{name} has {len(data)} bytes, this server takes {max_bytes} at most.")
    text, long_strings = _take_out_long_strings(data, name, max_text_bytes, max_structure_bytes)
    if len(text) > max_text_bytes:
        raise _too_much_text(name, str(len(text)), max_text_bytes)
    try:
        content = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8: {error}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON: {error}.") from None
    if is_too_deep(content):
        raise UserError(f"{name} is nested more than {MAX_LEVELS} levels deep.")
    return _put_back(content, long_strings) if long_strings else content


def _too_much_text(name: str, num_bytes: str, most: int) -> UserError:
    return UserError(
        f"{name} has {num_bytes} bytes beside its pictures and videos, this server takes {most} at most."
    )


def _take_out_long_strings(
    data: Bytes, name: str, max_text_bytes: int, max_structure_bytes: int
) -> tuple[Bytes, Mapping[str, str]]:
    """The JSON with names in the place of its long strings, and the strings by these names."""
    prefix = secrets.token_hex(16)  # no client can guess what stands for another string
    pieces: list[Bytes] = []
    long_strings: dict[str, str] = {}
    position = 0
    for start, stop in _bounded_strings(data, name, max_text_bytes, max_structure_bytes):
        if stop - start >= _LONG_STRING_BYTES and (string := _unescaped(data[start:stop])) is not None:
            key = f"{prefix}-{len(long_strings)}"
            long_strings[key] = string
            pieces += [data[position:start], key.encode()]
            position = stop
    return b"".join([*pieces, data[position:]]) if pieces else data, long_strings


def _bounded_strings(
    data: Bytes, name: str, max_text_bytes: int, max_structure_bytes: int
) -> Iterator[tuple[int, int]]:
    """Where each string begins and ends, without its quotation marks, as long as there are not too many.

    Raises:
        UserError: too much outside of strings, too many of them, or more quotation marks in them than texts may have.
    """
    num_structure_bytes = num_strings = previous = 0
    for start, stop in _string_bounds(data, name, max_text_bytes):
        num_strings += 1
        num_structure_bytes += start - previous
        previous = stop
        if num_structure_bytes > max_structure_bytes or 2 * num_strings > max_structure_bytes:
            break
        yield start, stop
    else:
        num_structure_bytes += len(data) - previous
    if num_structure_bytes > max_structure_bytes or 2 * num_strings > max_structure_bytes:
        raise UserError(
            f"{name} has more than {max_structure_bytes} bytes outside of its strings, or more than "
            f"{max_structure_bytes // 2} strings.",
            "Send fewer parts.",
        )


def _string_bounds(data: Bytes, name: str, max_text_bytes: int) -> Iterator[tuple[int, int]]:
    """What is no JSON, an unfinished string for one, is left to the parser.

    A string that holds an escaped quotation mark is text, so all texts together bound how many are looked at.
    """
    start = data.find(b'"') + 1
    stop = num_escaped = 0
    while start and (stop := data.find(b'"', max(start, stop))) >= 0:
        if data[stop - 1] == _BACKSLASH and _is_escaped(data, start, stop):
            num_escaped += 1
            if 2 * num_escaped > max_text_bytes:
                raise _too_much_text(name, f"more than {max_text_bytes}", max_text_bytes)
            stop += 1
            continue
        yield start, stop
        start = data.find(b'"', stop + 1) + 1


def _is_escaped(data: Bytes, start: int, stop: int) -> bool:
    """Whether an odd number of backslashes stands before the quotation mark at `stop`; there is one at least."""
    if stop - 2 < start or data[stop - 2] != _BACKSLASH:
        return True
    near = data[max(start, stop - _NEAR_BYTES) : stop]
    piece = near.rstrip(b"\\")
    if piece or len(near) < _NEAR_BYTES:
        return bool((len(near) - len(piece)) % 2)
    far = data[start:stop]
    return bool((len(far) - len(far.rstrip(b"\\"))) % 2)


def _unescaped(data: Bytes) -> str | None:
    r"""A JSON string that has no escape but `\/`, which PHP writes; None for every other."""
    num_backslashes = sum(piece.count(b"\\") for piece in _pieces(data))
    if num_backslashes:
        if num_backslashes > len(data) // 16:
            return None
        data = data.replace(b"\\/", b"/")
    if any(len(piece.translate(None, _NEVER_PLAIN)) != len(piece) for piece in _pieces(data)):
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _pieces(data: Bytes) -> Iterator[Bytes]:
    return (data[start : start + _STEP_BYTES] for start in range(0, len(data), _STEP_BYTES))


def _put_back(content: Any, long_strings: Mapping[str, str]) -> Any:
    if isinstance(content, str):
        return long_strings.get(content, content)
    if isinstance(content, list):
        return [_put_back(value, long_strings) for value in content]
    if isinstance(content, dict):
        return {long_strings.get(key, key): _put_back(value, long_strings) for key, value in content.items()}
    return content
