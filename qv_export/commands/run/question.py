"""What `qv-export run` is asked: a prompt with its pictures and videos in their order, or a whole conversation."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from export.errors import UserError
from export.files.json_object import parse_json
from qv_export.commands.media_options import budget_of
from qv_export.model import Message, question

_MEDIA = {"images": "image", "videos": "video"}
MEDIA_ORDER = "qv_export.media_order"


class MediaCommand(click.Command):
    """Remembers how --image and --video were interleaved, which Click forgets."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        ctx.meta[MEDIA_ORDER] = [parameter.name for parameter in order if parameter.name in _MEDIA]
        return super().parse_args(ctx, args)


@dataclass(frozen=True)
class Prompt:
    """What the user asks: pictures and videos in the order of the command line, then the text."""

    text: str
    media: tuple[tuple[str, Path], ...]
    system: str | None
    budgets: Mapping[str, Any] = field(default_factory=dict)
    """Pixels, frames and seconds of each of them, as fields of a message's part."""

    def messages(self) -> list[Message]:
        """In the chat format of Hugging Face."""
        messages = question(self.text, self.media, self.system)
        for part in messages[-1]["content"]:
            if part["type"] != "text":
                part.update(budget_of(part["type"], self.budgets))
        return messages


def read_prompt(prompt: str) -> str:
    """The prompt as given, or stdin for "-".

    Raises:
        UserError: what was given is empty or no UTF-8.
    """
    try:
        # The shell's bytes that are no UTF-8 arrive as lone surrogates, which no tokenizer takes.
        content = sys.stdin.buffer.read() if prompt == "-" else prompt.encode()
        text = content.decode("utf-8").rstrip("\n") if prompt == "-" else prompt
    except UnicodeError as error:
        raise UserError(f"the prompt must be UTF-8: {error}") from None
    if not text.strip():
        source = "stdin" if prompt == "-" else "--prompt"
        raise UserError(
            f"The prompt is empty ({source}).", 'Ask something: --prompt "What is in this picture?"'
        )
    return text


def interleaved_media(
    order: Sequence[str], images: Iterable[Path], videos: Iterable[Path]
) -> tuple[tuple[str, Path], ...]:
    """(kind, path) pairs as they stood on the command line; `order` names a parameter for each."""
    given = {"images": iter(images), "videos": iter(videos)}
    return tuple((_MEDIA[name], next(given[name])) for name in order)


def messages_from_file(path: Path) -> list[Message]:
    """A conversation whose relative paths start at its file.

    Raises:
        UserError: no JSON list there.
    """
    from export.processor.text.conversation import with_paths_from

    messages: list[Message] = with_paths_from(json_list(path, "messages"), path.parent)
    return messages


def json_list(path: Path, what: str) -> list[Any]:
    """A file's JSON list of `what`.

    Raises:
        UserError: no such file, or none in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    content = parse_json(text, str(path))
    if not isinstance(content, list):
        raise UserError(f"{path} must hold a JSON list of {what}, found {type(content).__name__}.")
    return content
