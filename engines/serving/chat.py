"""What servers of any protocol do with a chat request once its fields are read: bounds, media, inputs of the model."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from engines.runtime.answer import Request
from engines.serving.limits import RequestLimits
from engines.serving.media.request_media import RequestMedia, media_limits
from export.checkpoint.generation_config import GenerationConfig
from export.errors import UserError
from export.inputs import ModelInputs
from export.processor.media.decode import LocalReader, MediaReader
from export.processor.processor import Processor

MakeReader = Callable[[LocalReader, float], MediaReader]
"""What decodes a request's media, from what would decode them here and the request's seconds."""


@dataclass(frozen=True)
class ChatRequest:
    """A request that may run."""

    request: Request
    stop_strings: tuple[str, ...]
    timeout_seconds: float
    skip_special_tokens: bool = True
    """Whether the text leaves out `<|im_end|>` and its like."""
    is_streamed: bool = False
    """Whether pieces are sent as they come, or the answer whole."""


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Receipt:
    """When a request came, and whether its client still waits."""

    at: float = field(default_factory=time.monotonic)
    """On the monotonic clock. All that a request may take counts from then."""
    is_cancelled: Callable[[], bool] = _never

    def left_seconds(self, timeout_seconds: float) -> float:
        """What is left of a request's time.

        Raises:
            CancelledError: nobody waits for an answer any longer.
            OutOfTimeError: nothing is left.
        """
        if self.is_cancelled():
            raise CancelledError
        left = self.at + timeout_seconds - time.monotonic()
        if left <= 0:
            raise OutOfTimeError(
                f"The request was not read and answered within {timeout_seconds:g} s. Send less, or allow more time."
            )
        return left


class CancelledError(Exception):
    """The client left."""


class OutOfTimeError(UserError):
    """A request's time was over before it came to the engine."""


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
    most = limits.max_tokens if limits.max_context is None else min(limits.max_tokens, limits.max_context)
    if asked > most:
        raise UserError(f"max_tokens is {asked}, this server allows {most} at most.")
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
    template: Mapping[str, Any] | None = None,
) -> ModelInputs:
    """Decode what the messages show and write the prompt.

    Args:
        messages: with bytes in the place of every picture and video, as `media` resolved them.
        media: all of them.
        processor: the bundle's.
        limits: what one request may hold.
        timeout_seconds: what is left of the request's.
        make_reader: what decodes; None: this process.
        template: what else the chat template is asked for, as `Processor.inputs_from_messages` takes it.

    Raises:
        UserError: malformed messages, a picture or video that cannot be used, or more than fits.
    """
    local = replace(processor.reader, limits=media_limits(processor, limits))
    reader = make_reader(local, timeout_seconds) if make_reader else local
    media.check_before_decoding(processor, limits, reader)
    return processor.inputs_from_messages(
        messages, reader, max_tokens=limits.max_context, max_seconds=timeout_seconds, **(template or {})
    )
