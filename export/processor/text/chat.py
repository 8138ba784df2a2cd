"""Token ids from chat messages, with the right number of placeholders for each picture and video.

Only the template may write special tokens. A user who types `<|im_end|>` or `<|image_pad|>` gets these characters as
ordinary text. To tell the two apart in the rendered text, the characters with which special tokens begin and end
travel through the template as private-use characters wherever a message's text holds them; special tokens are looked
for only then, and the characters changed back only after. Ordinary text is not touched, so the template trims and
joins it as ever, and words form across the seam between template and text.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.checkpoint.config import ModelConfig
from export.errors import UserError
from export.inputs import Grid
from export.processor.text.conversation import Medium, Message, require_shallow, strings_within
from export.processor.text.template import ChatTemplate
from export.processor.text.tokenizer import SpecialTokens

_PRIVATE_USE = range(0x100000, 0x10FFFE)


@dataclass(frozen=True)
class TemplateOptions:
    """What a template may be asked for beside the messages."""

    tools: Sequence[Mapping[str, Any]] | None = None
    """Functions that the model may call, as JSON schemas."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the template, such as `add_vision_id`."""
    continue_final_message: bool = False
    """Go on with the last message in place of beginning an answer."""


NO_OPTIONS = TemplateOptions()


def media_from_conversation(conversation: Sequence[Message]) -> list[Medium]:
    """The pictures and videos of a conversation in order of appearance."""
    return [part for message in conversation for part in message.parts if isinstance(part, Medium)]


def token_ids_from_conversation(
    conversation: Sequence[Message],
    template: ChatTemplate,
    special_tokens: SpecialTokens,
    *,
    options: TemplateOptions = NO_OPTIONS,
    max_tokens: int | None = None,
    max_seconds: float | None = None,
) -> NDArray[np.int64]:
    """Token ids of the rendered conversation, ready for the answer: int64 [S], one placeholder for each medium.

    Raises:
        UserError: an option that the template does not read, the template fails on the messages, or there are more
            tokens than `max_tokens`.
    """
    require_shallow([options.tools, options.variables], "What the template is asked for")
    texts = [part for message in conversation for part in message.parts if isinstance(part, str)]
    fields = [text for message in conversation for text in strings_within(message.fields)]
    asked = [*strings_within(options.tools), *strings_within(options.variables)]
    guard = _TextGuard(special_tokens.texts, [*texts, *fields, *asked, template.source])
    rendered = _rendered(conversation, template, guard, options, max_seconds)
    most = math.inf if max_tokens is None else max_tokens
    token_ids: list[int] = []
    for text, special_id in special_tokens.split(rendered):
        num_tokens = len(token_ids) + special_tokens.fewest_tokens(text)
        if num_tokens <= most:
            token_ids += special_tokens.encode_plain(guard.uncover(text))
            token_ids += [] if special_id is None else [special_id]
            num_tokens = len(token_ids)
        if num_tokens > most:
            raise UserError(
                f"The prompt takes more than {most} tokens, but the context holds {most}. Shorten it."
            )
    return np.array(token_ids, dtype=np.int64)


def _rendered(
    conversation: Sequence[Message],
    template: ChatTemplate,
    guard: "_TextGuard",
    options: TemplateOptions,
    max_seconds: float | None,
) -> str:
    variables = {
        **{name: guard.cover_within(value) for name, value in options.variables.items()},
        **({} if options.tools is None else {"tools": guard.cover_within(options.tools)}),
    }
    messages = [_for_template(message, guard) for message in conversation]
    if not options.continue_final_message:
        return template.render(messages, variables=variables, max_seconds=max_seconds)
    last = conversation[-1]
    if last.role != "assistant" or not last.parts or not isinstance(last.parts[-1], str):
        raise UserError("continue_final_message needs a last message of the assistant that ends with text.")
    # The mark ends the text, so that whatever the template writes after it can be told from it.
    content = messages[-1]["content"]
    if isinstance(content, str):
        messages[-1]["content"] = content + guard.mark
    else:
        content[-1]["text"] += guard.mark
    rendered = template.render(
        messages, variables=variables, add_generation_prompt=False, max_seconds=max_seconds
    )
    text, mark, _ = rendered.rpartition(guard.mark)
    if not mark:
        raise UserError(f"{template.name}: the chat template leaves the last message's text out.")
    return text


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
        free = list(islice(unused, len(ends) + 1))
        if len(free) < len(ends) + 1:
            raise UserError(
                "The messages use every private-use character of Unicode's last plane.", "Remove some."
            )
        self.mark = free.pop()
        """A character that stands nowhere in the messages."""
        covers = dict(zip(ends, free, strict=False))
        self._cover = str.maketrans(covers)
        self._uncover = str.maketrans({cover: end for end, cover in covers.items()})

    def cover(self, text: str) -> str:
        return text.translate(self._cover)

    def uncover(self, text: str) -> str:
        return text.translate(self._uncover)

    def cover_within(self, value: Any) -> Any:
        """A JSON value with every string of it covered, keys included."""
        if isinstance(value, str):
            return self.cover(value)
        if isinstance(value, Mapping):
            return {self.cover_within(key): self.cover_within(item) for key, item in value.items()}
        return [self.cover_within(item) for item in value] if isinstance(value, list | tuple) else value


def _for_template(message: Message, guard: _TextGuard) -> dict[str, Any]:
    """The message as the template sees it: guarded text, and media without their data."""
    fields = {name: guard.cover_within(value) for name, value in message.fields.items()}
    if isinstance(message.content, str):
        return {"role": message.role, "content": guard.cover(message.content), **fields}
    parts = [
        {"type": "text", "text": guard.cover(part)}
        if isinstance(part, str)
        else {"type": part.kind, part.kind: part.kind}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts, **fields}
