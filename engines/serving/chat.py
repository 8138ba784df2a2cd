"""What servers of any protocol do with a chat request once its fields are read: bounds, media, inputs of the model."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from engines.runtime.answer import Request
from engines.serving.limits import RequestLimits
from engines.serving.request_media import RequestMedia
from export.errors import UserError
from export.generation_config import GenerationConfig
from export.inputs import ModelInputs
from export.processor.media.decode import LocalReader, MediaReader
from export.processor.media.limits import MediaLimits
from export.processor.processor import Processor

MakeReader = Callable[[LocalReader, float], MediaReader]
"""What decodes a request's media, from what would decode them here and the request's seconds."""


@dataclass(frozen=True)
class ChatRequest:
    """A request that may run."""

    request: Request
    stop_strings: tuple[str, ...]
    timeout_seconds: float


class Problems:
    """Collects `UserError`s, so that a client learns of all its mistakes at once."""

    def __init__(self) -> None:
        self._found: list[str] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            self._found.append(str(error))

    def raise_if_any(self) -> None:
        if self._found:
            raise UserError("\n".join(self._found))


def bounded_max_tokens(asked: int | None, defaults: GenerationConfig, limits: RequestLimits) -> int:
    """How long the answer may become.

    Raises:
        UserError: longer than this server allows.
    """
    if asked is None:
        return min(defaults.max_new_tokens, limits.max_tokens)
    if asked > limits.max_tokens:
        raise UserError(f"max_tokens is {asked}, this server allows {limits.max_tokens} at most.")
    return asked


def bounded_seconds(asked: float | None, name: str, limits: RequestLimits) -> float:
    """How long the answer may take, from the receipt of the request on.

    Raises:
        UserError: no time, or more than this server allows.
    """
    if asked is None:
        return limits.timeout_seconds
    if not (math.isfinite(asked) and 0 < asked <= limits.timeout_seconds):
        raise UserError(f"{name} must be above 0 and at most {limits.timeout_seconds:g}, found {asked:g}.")
    return asked


def bounded_stop_strings(texts: Sequence[str], limits: RequestLimits) -> tuple[str, ...]:
    """What ends the answer.

    Raises:
        UserError: too many, too long, or an empty one.
    """
    if len(texts) > limits.max_stop_strings or sum(map(len, texts)) > limits.max_stop_characters:
        raise UserError(
            f"At most {limits.max_stop_strings} stop strings of together {limits.max_stop_characters} characters are "
            f"taken, found {len(texts)} of {sum(map(len, texts))}."
        )
    if "" in texts:
        raise UserError("A stop string must not be empty.")
    return tuple(texts)


def model_inputs(
    messages: Sequence[Mapping[str, Any]],
    media: RequestMedia,
    processor: Processor,
    limits: RequestLimits,
    timeout_seconds: float,
    make_reader: MakeReader | None = None,
) -> ModelInputs:
    """Decode what the messages show and write the prompt.

    Args:
        messages: with bytes in the place of every picture and video, as `media` resolved them.
        media: all of them.
        processor: the bundle's.
        limits: what one request may hold.
        timeout_seconds: of the request.
        make_reader: what decodes; None: this process.

    Raises:
        UserError: malformed messages, a picture or video that cannot be used, or more than fits.
    """
    local = replace(processor.reader, limits=MediaLimits(max_video_frames=limits.max_video_frames))
    reader = make_reader(local, timeout_seconds) if make_reader else local
    media.check_before_decoding(processor, limits, reader)
    return processor.inputs_from_messages(messages, reader, max_tokens=limits.max_context)
