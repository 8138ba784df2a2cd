"""Reads the conversation of a request and bounds all of it, before any work that it asks for begins."""

from collections.abc import Iterator, Mapping
from typing import Any

from engines.serving.json_text import parse_bounded_json
from engines.serving.limits import RequestLimits
from export.errors import UserError
from export.processor.text.conversation import MEDIA_KEYS


def read_messages(data: bytes, limits: RequestLimits) -> list[dict[str, Any]]:
    """The conversation of a JSON text; see `bounded_messages`.

    Raises:
        UserError: no JSON list of objects, or more of anything than the limits allow.
    """
    messages = parse_bounded_json(
        data,
        "messages",
        max_bytes=limits.max_message_bytes,
        max_text_bytes=limits.max_text_bytes,
        max_structure_bytes=limits.max_structure_bytes,
    )
    return bounded_messages(messages, limits)


def bounded_messages(messages: Any, limits: RequestLimits) -> list[dict[str, Any]]:
    """The conversation, in shape and bounds; what a part may hold is checked where it is resolved.

    Raises:
        UserError: no list of objects, or more of anything than the limits allow.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UserError(
            'messages must be a JSON list like [{"role": "user", "content": "..."}], found '
            f"{type(messages).__name__}."
        )
    if len(messages) > limits.max_messages:
        raise UserError(f"A conversation has at most {limits.max_messages} messages, found {len(messages)}.")
    num_parts = sum(len(content) for content in _contents(messages) if isinstance(content, list))
    if num_parts > limits.max_parts:
        raise UserError(f"A conversation has at most {limits.max_parts} parts, found {num_parts}.")
    num_characters = sum(_num_characters(message) for message in messages)
    if num_characters > limits.max_text_characters:
        raise UserError(
            f"The texts have {num_characters} characters, this server takes {limits.max_text_characters} at most."
        )
    return [_known_role(message) for message in messages]


def _known_role(message: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's newer name of the system's role is none that a chat template knows."""
    return {**message, "role": "system"} if message.get("role") == "developer" else message


def _contents(messages: list[dict[str, Any]]) -> Iterator[Any]:
    return (message.get("content") for message in messages)


def _num_characters(content: Any) -> int:
    """Of all strings and keys but pictures and videos, which are weighed as files."""
    if isinstance(content, str):
        return len(content)
    if isinstance(content, list):
        return sum(map(_num_characters, content))
    if isinstance(content, Mapping):
        return sum(
            len(key) + (0 if key in MEDIA_KEYS else _num_characters(value)) for key, value in content.items()
        )
    return 0
