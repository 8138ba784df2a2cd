"""Reads a JSON file from outside."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.errors import UserError
from export.files.untrusted import MAX_JSON_BYTES, read_own_bytes

_MAX_DIGITS = 300  # an integer of more is beyond float64, and whoever divides by it fails


def read_json_object(path: Path, most_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Parse a file that must hold one JSON object, in a directory that others may have written.

    Raises:
        UserError: the file cannot be read, is none of the directory's own, is larger, or holds something else.
    """
    try:
        content = read_own_bytes(path, most_bytes)
    except FileNotFoundError:
        raise UserError(
            f"{path} not found: expected a Qwen2-VL checkpoint's directory with this file."
        ) from None
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        raise UserError(f"{path} cannot be read: {error}") from None
    return json_object_from_bytes(content, str(path))


def json_object_from_bytes(content: bytes, source: str) -> dict[str, Any]:
    """Parse bytes that must be one JSON object in UTF-8; `source` names it in messages.

    Raises:
        UserError: they are something else.
    """
    try:
        return parse_json_object(content.decode("utf-8"), source)
    except UnicodeDecodeError as error:
        raise UserError(f"{source} cannot be read: {error}") from None


def parse_json_object(text: str, source: str) -> dict[str, Any]:
    """Parse text that must be one JSON object; see `parse_json`.

    Raises:
        UserError: it is something else.
    """
    content = parse_json(text, source)
    if not isinstance(content, dict):
        raise UserError(f"{source} must hold a JSON object, found {type(content).__name__}.")
    return content


def parse_json(text: str, source: str) -> Any:
    """Parse text that must be JSON; `source` names it in messages.

    Two keys of one name, of which parsers choose differently, and numbers that are none in float64 are refused.

    Raises:
        UserError: it is something else.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} cannot be read as JSON: {error!s:.300}") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r:.100} stands in one object twice")
    return content


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.40} is not a finite number")
    return number
