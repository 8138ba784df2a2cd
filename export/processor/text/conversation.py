"""Reads a conversation in the dialects that people write, and gives the one form that everything else takes.

Hugging Face's chat format, OpenAI's Chat Completions and Responses, and what vLLM and qwen-vl-utils add to them. A null
field is an absent one. What no template could follow is refused by its name.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.errors import UserError
from export.files.checks import MAX_LEVELS, is_too_deep
from export.processor.media.budget import (
    KEYS_OF,
    NO_BUDGET,
    Budget,
    read_budget,
)
from export.processor.media.data_urls import is_data_url, looks_like_base64

ROLES = ("system", "developer", "user", "assistant", "tool")
"""That every template of the family renders; others only where the template names them."""

_MAX_ROLE_CHARACTERS = 64
# Of a message, for the template to render; what stands in them is guarded like text.
_TEMPLATE_FIELDS = frozenset({"name", "tool_calls", "tool_call_id"})
# An OpenAI client dumps an answer with these; empty, they say nothing.
_EMPTY_FIELDS = frozenset({"annotations", "tool_calls"})
_TEXT_TYPES = frozenset({"text", "input_text", "output_text"})
# type: kind of medium, and the keys under which its source may stand
_MEDIA_TYPES = {
    "image": ("image", ("image", "path", "url", "base64")),
    "image_url": ("image", ("image_url",)),
    "input_image": ("image", ("image_url",)),
    "video": ("video", ("video", "path", "url", "base64")),
    "video_url": ("video", ("video_url",)),
    "input_video": ("video", ("video_url",)),
}
MEDIA_KEYS = frozenset(key for _, keys in _MEDIA_TYPES.values() for key in keys)
"""Keys of a part under which its picture or video stands."""


@dataclass(frozen=True)
class Medium:
    """A picture or video of a conversation."""

    kind: str
    """`image` or `video`."""
    source: Any
    budget: Budget = NO_BUDGET
    """Pixels, frames and seconds that it may take."""


@dataclass(frozen=True)
class Message:
    """One turn."""

    role: str
    content: str | tuple[str | Medium, ...]
    """A text alone, or texts and media in order."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What else the template may render: name, tool calls, the call that a tool answers."""

    @property
    def parts(self) -> tuple[str | Medium, ...]:
        """Texts and media in order."""
        return (self.content,) if isinstance(self.content, str) else self.content


def read_conversation(messages: Sequence[Mapping[str, Any]], template_source: str = "") -> list[Message]:
    """Check a conversation and bring it into one form.

    Args:
        messages: each {"role": ..., "content": text, null or a list of parts}.
        template_source: of the chat template, which may name further roles.

    Raises:
        UserError: another shape, an unknown role or field; the message and part are named.
    """
    if isinstance(messages, str | bytes | Mapping) or not messages:
        raise UserError(
            'Messages must be a list like [{"role": "user", "content": "..."}], found '
            + (repr(messages)[:80] or "none")
        )
    return [_message(message, index, template_source) for index, message in enumerate(messages)]


def _message(message: Any, index: int, template_source: str) -> Message:
    where = f"Message {index}"
    role = message.get("role") if isinstance(message, Mapping) else None
    # The role is written into the prompt as it is.
    if (
        not isinstance(role, str)
        or len(role) > _MAX_ROLE_CHARACTERS
        or not role.replace("_", "").replace("-", "").isalnum()
    ):
        raise UserError(
            f"{where} needs a role of letters, {_MAX_ROLE_CHARACTERS} at most, like system, user or assistant; found "
            f"{role!r:.80}."
        )
    if role not in ROLES and f"'{role}'" not in template_source and f'"{role}"' not in template_source:
        raise UserError(
            f"{where} has the role {role!r}, which the chat template does not know: {', '.join(ROLES)}."
        )
    given = {
        key: value
        for key, value in message.items()
        if value is not None and not (key in _EMPTY_FIELDS and value == [])
    }
    _refuse_unknown_keys(given, {"role", "content", *_TEMPLATE_FIELDS}, where)
    if "content" not in message and "tool_calls" not in given:
        raise UserError(f"{where} has no content: expected a string as text, or a list of parts.")
    content = given.get("content", "")
    fields = {key: given[key] for key in given if key in _TEMPLATE_FIELDS}
    if "tool_calls" in fields:
        fields["tool_calls"] = _tool_calls(fields["tool_calls"], where)
    require_shallow(fields, where)
    if isinstance(content, str):
        return Message(role, _checked_text(content, where), fields)
    if not isinstance(content, list | tuple):
        raise UserError(f"{where}: expected a string as text, found {type(content).__name__}.")
    return Message(
        role, tuple(read_part(part, f"{where}, part {n}") for n, part in enumerate(content)), fields
    )


def _tool_calls(calls: Any, where: str) -> Any:
    """OpenAI writes a call's arguments as a text that is JSON; templates write them as the object that it is."""
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise UserError(f"{where}: tool_calls must be a list of objects, found {calls!r:.80}.")
    return [_tool_call(call, where) for call in calls]


def _tool_call(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = call.get("function")
    if isinstance(function, Mapping):
        return {**call, "function": _with_object(function, where)}
    return _with_object(call, where)


def _with_object(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return dict(call)
    try:
        return {**call, "arguments": json.loads(arguments or "{}")}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: the arguments of a tool call are no JSON: {error}.") from None


def read_part(part: Any, where: str) -> str | Medium:
    """One part of a message's content: a text, or a picture or video with its source as it is given.

    Raises:
        UserError: another shape, an unknown type or field; `where` names it.
    """
    if isinstance(part, str):
        return _checked_text(part, where)
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):  # a list or an object, of which no set can be asked
        raise UserError(f"{where}: expected an object of type text, image or video, found {part!r:.80}.")
    given = {key: value for key, value in part.items() if value is not None}
    if kind in _TEXT_TYPES:
        _refuse_unknown_keys(given, {"type", "text"}, where)
        return _checked_text(given.get("text"), where)
    if kind in _MEDIA_TYPES:
        return _medium(kind, given, where)
    known = ", ".join(("text", *_MEDIA_TYPES))
    raise UserError(f"{where}: expected an object of type {known}; found {kind!r:.80}.")


def _medium(part_type: str, given: dict[str, Any], where: str) -> Medium:
    kind, keys = _MEDIA_TYPES[part_type]
    found = [key for key in keys if key in given]
    if not found:
        raise UserError(
            f"{where}: expected the {kind} under the key {keys[0]!r}, found {sorted(map(str, given))}."
        )
    if len(found) > 1:
        raise UserError(f"{where} holds the {kind} {len(found)} times: {', '.join(found)}.", "Keep one.")
    source = given.pop(found[0])
    if isinstance(source, Mapping):  # {"url": ..., "detail": ...}, as OpenAI's clients send it
        inner = {key: value for key, value in source.items() if value is not None}
        if "url" not in inner:
            raise UserError(
                f"{where}: expected an address under {found[0]}.url, found {sorted(map(str, inner))}."
            )
        source = inner.pop("url")
        if repeated := sorted(inner.keys() & given.keys()):
            raise UserError(f"{where} says {', '.join(repeated)} twice.")
        given |= inner
    _refuse_unknown_keys(given, {"type", "detail"} | KEYS_OF[kind], where)
    asked = {key: value for key, value in given.items() if key in KEYS_OF[kind]}
    detail = given.get("detail", "auto")
    if detail not in ("auto", "high", "low"):
        raise UserError(f"{where}: detail must be auto, high or low, found {detail!r:.80}.")
    if detail == "low":
        asked["detail"] = detail
    return Medium(kind, source, read_budget(kind, asked, where))


def _checked_text(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise UserError(f"{where}: expected a string as text, found {type(text).__name__}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: the text is no valid Unicode: {error}.") from None
    return text


def _refuse_unknown_keys(content: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(str(key) for key in content if key not in known)
    if unknown:
        raise UserError(f"{where} has keys that nothing here follows: {', '.join(unknown)}.", "Remove them.")


def with_paths_from(messages: Any, directory: Path) -> Any:
    """Messages of a file, with relative paths of pictures and videos seen from its directory."""
    if isinstance(messages, list):
        return [with_paths_from(item, directory) for item in messages]
    if isinstance(messages, dict):
        return {
            key: _seen_from(value, directory) if key in MEDIA_KEYS else with_paths_from(value, directory)
            for key, value in messages.items()
        }
    return messages


def _seen_from(source: Any, directory: Path) -> Any:
    if isinstance(source, list):
        return [_seen_from(item, directory) for item in source]
    if isinstance(source, dict):
        return {key: _seen_from(value, directory) if key == "url" else value for key, value in source.items()}
    is_path = isinstance(source, str) and not (
        is_data_url(source) or "://" in source[:16] or looks_like_base64(source)
    )
    return str(directory / source) if is_path else source


def require_shallow(value: Any, where: str) -> None:
    """Refuse a JSON value that the walks through its strings, and templates, could not follow to its end.

    Raises:
        UserError: it is nested too deeply.
    """
    if is_too_deep(value):
        raise UserError(f"{where} holds a value that is nested more than {MAX_LEVELS} levels deep.")


def strings_within(value: Any) -> Iterator[str]:
    """Every string of a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings_within(key)
            yield from strings_within(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_within(item)
