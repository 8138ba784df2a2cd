"""How do chat messages become token ids, with the right number of placeholders for each picture and video?

Only the template may write special tokens. A user who types `<|im_end|>` or `<|image_pad|>` gets these characters as
ordinary text. To tell the two apart in the rendered text, the characters with which special tokens begin and end
travel through the template as private-use characters wherever a message's text holds them; special tokens are looked
for only then, and the characters changed back only after. Ordinary text is not touched, so the template trims and
joins it as ever, and words form across the seam between template and text.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.config import ModelConfig
from export.errors import UserError
from export.inputs import Grid
from export.processor.template import ChatTemplate
from export.processor.tokenizer import SpecialTokens

_PRIVATE_USE = range(0x100000, 0x10FFFE)
_MAX_ROLE_CHARACTERS = 64


@dataclass(frozen=True)
class Medium:
    """A picture or video of a conversation."""

    kind: str
    """`image` or `video`."""
    source: Any


def media_from_messages(messages: Sequence[Mapping[str, Any]]) -> list[Medium]:
    """The pictures and videos of a conversation in order of appearance.

    Raises:
        UserError: the messages have another shape than the Hugging Face chat format.
    """
    return [part for _, content in _checked(messages) for part in content if isinstance(part, Medium)]


def token_ids_from_messages(
    messages: Sequence[Mapping[str, Any]],
    template: ChatTemplate,
    special_tokens: SpecialTokens,
    *,
    max_tokens: int | None = None,
) -> NDArray[np.int64]:
    """Token ids of the rendered conversation, ready for the answer: int64 [S], one placeholder for each medium.

    Raises:
        UserError: malformed messages, the template fails on them, or there are more tokens than `max_tokens`.
    """
    guard = _TextGuard(special_tokens.texts, [*_all_texts(messages), template.source])
    rendered = template.render([_for_template(*message, guard) for message in _checked(messages)])
    most = math.inf if max_tokens is None else max_tokens
    token_ids: list[int] = []
    for text, special_id in special_tokens.split(rendered):
        num_tokens = len(token_ids) + special_tokens.fewest_tokens(text)
        if num_tokens <= most:
            token_ids += special_tokens.encode_plain(guard.uncover(text))
            token_ids += [] if special_id is None else [special_id]
            num_tokens = len(token_ids)
        if num_tokens > most:
            raise UserError(f"The prompt takes more than {most} tokens, which the context holds. Shorten it.")
    return np.array(token_ids, dtype=np.int64)


def expand_placeholders(
    token_ids: NDArray[np.int64], media: Sequence[Medium], grids: Sequence[Grid], config: ModelConfig
) -> NDArray[np.int64]:
    """Repeat each placeholder once for every merged patch of its picture or video: int64 [S'].

    Raises:
        UserError: the template wrote more or fewer placeholders than there are pictures or videos, or in another order.
    """
    placeholder_of = {"image": config.image_token_id, "video": config.video_token_id}
    is_placeholder = np.isin(token_ids, list(placeholder_of.values()))
    found = token_ids[is_placeholder].tolist()
    expected = [placeholder_of[medium.kind] for medium in media]
    if found != expected:
        counts = ", ".join(
            f"{found.count(placeholder)} {kind} placeholders for {expected.count(placeholder)} {kind}s"
            for kind, placeholder in placeholder_of.items()
        )
        raise UserError(
            f"The rendered prompt does not fit the pictures and videos given: it has {counts}"
            f"{', in another order' if sorted(found) == sorted(expected) else ''}. "
            "Check the chat template and its placeholder tokens against config.json."
        )
    repeats = np.ones(len(token_ids), np.int64)
    repeats[is_placeholder] = [np.prod(grid) // config.vision.spatial_merge_size**2 for grid in grids]
    return np.repeat(token_ids, repeats)


class _TextGuard:
    """Swaps the first and last characters of special tokens for private-use ones, and back."""

    def __init__(self, special_texts: frozenset[str], texts: Sequence[str]) -> None:
        # With both ends covered, no token can form that holds a message's text together with an end of its own.
        ends = sorted({end for text in special_texts for end in (text[:1], text[-1:]) if end.strip()})
        taken = {ord(character) for text in (*texts, *special_texts) for character in text}
        unused = (chr(code) for code in _PRIVATE_USE if code not in taken)
        free = list(islice(unused, len(ends)))
        if len(free) < len(ends):
            raise UserError(
                "The messages use every private-use character of Unicode's last plane. Remove some."
            )
        covers = dict(zip(ends, free, strict=False))
        self._cover = str.maketrans(covers)
        self._uncover = str.maketrans({cover: end for end, cover in covers.items()})

    def cover(self, text: str) -> str:
        return text.translate(self._cover)

    def uncover(self, text: str) -> str:
        return text.translate(self._uncover)


_Content = list[str | Medium]


def _checked(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], _Content]]:
    """Each message with its content as a list of texts and media, checked."""
    if isinstance(messages, str | bytes | Mapping) or not messages:
        raise UserError(
            'Messages must be a list like [{"role": "user", "content": "..."}], found '
            + (repr(messages)[:80] or "none")
        )
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        # The role is written into the prompt as it is.
        if (
            not isinstance(role, str)
            or len(role) > _MAX_ROLE_CHARACTERS
            or not role.replace("_", "").replace("-", "").isalnum()
        ):
            raise UserError(
                f"Message {index} needs a role of letters, {_MAX_ROLE_CHARACTERS} at most, like system, user or "
                f"assistant; found {role!r:.80}."
            )
        _refuse_unknown_keys(message, {"role", "content"}, f"Message {index}")
        content = message.get("content")
        parts = content if isinstance(content, list | tuple) else [{"type": "text", "text": content}]
        yield message, [_checked_part(part, f"Message {index}, part {n}") for n, part in enumerate(parts)]


def _checked_part(part: Any, where: str) -> str | Medium:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):  # a list or an object, of which no set can be asked
        raise UserError(f"{where}: expected an object of type text, image or video, found {part!r:.80}.")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise UserError(f"{where}: expected a string as text, found {type(part.get('text')).__name__}.")
        try:
            part["text"].encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{where}: the text is no valid Unicode: {error}.") from None
        return str(part["text"])
    if kind in {"image", "video"}:
        source = part.get(kind, part.get("path"))
        if source is None:
            raise UserError(
                f"{where}: expected the {kind} under the key {kind!r}, found {sorted(map(str, part))}."
            )
        _refuse_unknown_keys(part, {"type", kind, "path"}, where)
        return Medium(kind, source)
    raise UserError(f"{where}: expected an object of type text, image or video, found {kind!r:.80}.")


def _refuse_unknown_keys(content: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(str(key) for key in content if key not in known)
    if unknown:
        raise UserError(f"{where} has keys that nothing here follows: {', '.join(unknown)}. Remove them.")


def _all_texts(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    return [part for _, content in _checked(messages) for part in content if isinstance(part, str)]


def _for_template(message: Mapping[str, Any], content: _Content, guard: _TextGuard) -> dict[str, Any]:
    """The message as the template sees it: guarded text, and media without their data."""
    if isinstance(message["content"], str):
        return {"role": message["role"], "content": guard.cover(message["content"])}
    parts = [
        {"type": "text", "text": guard.cover(part)}
        if isinstance(part, str)
        else {"type": part.kind, part.kind: part.kind}
        for part in content
    ]
    return {"role": message["role"], "content": parts}
