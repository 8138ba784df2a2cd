"""Requests of the Triton model's clients: tensors in, a request that may run out.

Everything in a request is hostile until checked: sizes before decoding, picture headers before pixels. All problems of
a request come in one message, for that request alone.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.runtime.answer import Request
from engines.serving.chat import (
    ChatRequest,
    MakeReader,
    Problems,
    Receipt,
    bounded_max_tokens,
    bounded_seconds,
    bounded_stop_strings,
    model_inputs,
)
from engines.serving.limits import RequestLimits
from engines.serving.media.fetching import Fetcher
from engines.serving.media.request_media import RequestMedia
from engines.serving.messages import read_messages
from engines.serving.triton.interface import CHAT_INPUTS, ServerTensor
from export.checkpoint.generation_config import GenerationConfig, override_generation_config
from export.errors import UserError
from export.processor.processor import Processor

Tensors = Mapping[str, npt.NDArray[Any]]
"""By name, as the server hands them over: TYPE_STRING as an object array of bytes."""

_OTHER_NAMES = {"max_new_tokens": "max_tokens", "max_completion_tokens": "max_tokens", "prompt": "messages"}
"""What other servers call the inputs of this one."""
_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")


def parse_request(
    tensors: Tensors,
    processor: Processor,
    defaults: GenerationConfig,
    limits: RequestLimits,
    fetcher: Fetcher | None = None,
    make_reader: MakeReader | None = None,
    receipt: Receipt | None = None,
    parameters: Iterable[str] = (),
) -> ChatRequest:
    """Check a request and make it ready for the scheduler.

    Args:
        tensors: of `interface.CHAT_INPUTS`; optional ones may be missing or empty.
        processor: the bundle's.
        defaults: the checkpoint's way of choosing tokens, where the client does not say.
        limits: what one request may hold.
        fetcher: for web addresses; None refuses them all.
        make_reader: what decodes media, from what would decode them here and the request's seconds; None: here.
        receipt: when it came, and whether its client still waits; None: now, and always.
        parameters: names of what the client asks for beside the tensors.

    Raises:
        UserError: whatever is wrong with it; all problems that can be told apart, in one message.
        CancelledError: the client left meanwhile.
    """
    receipt, timeout_seconds = receipt or Receipt(), limits.timeout_seconds
    problems = Problems()
    with problems.collected():
        refuse_parameters(parameters, CHAT_INPUTS)
    with problems.collected():
        config = _generation_config(tensors, defaults, limits)
    with problems.collected():
        is_streamed = _flag(tensors, "stream")
    with problems.collected():
        seed = _whole_number(tensors, "seed")
        timeout_seconds = bounded_seconds(_number(tensors, "timeout_seconds"), "timeout_seconds", limits)
    with problems.collected():
        texts = [_text(data, "stop") for data in _strings(tensors, "stop")]
        stop_strings = bounded_stop_strings(texts, limits)
    with problems.collected():
        messages = _messages(tensors, limits)
        media = RequestMedia(
            [bytes(file) for file in _strings(tensors, "media")],
            limits,
            fetcher,
            deadline=receipt.at + timeout_seconds,
            is_cancelled=receipt.is_cancelled,
        )
        messages = [media.resolved(message) for message in messages]
        media.check()
    problems.raise_if_any()
    left_seconds = receipt.left_seconds(timeout_seconds)
    inputs = model_inputs(messages, media, processor, limits, left_seconds, make_reader)
    return ChatRequest(Request(inputs, config, seed), stop_strings, timeout_seconds, is_streamed)


def refuse_parameters(names: Iterable[str], inputs: Sequence[ServerTensor]) -> None:
    """Refuse what a client asks for and nothing here follows: the generate extension makes parameters of unknown keys.

    Args:
        names: of the request's parameters; those of the server's own begin with "triton_".
        inputs: that the model takes.

    Raises:
        UserError: there are any; all of them by name, each with the input that may be meant.
    """
    known = [tensor.name for tensor in inputs]
    unknown = [name for name in names if not name.startswith("triton_")]
    if unknown:
        told = [_told(name, known) for name in sorted(unknown)[:16]]
        raise UserError(f"Nothing here follows {', '.join(told)}. This model takes {', '.join(known)}.")


def _told(name: str, known: Sequence[str]) -> str:
    meant = _OTHER_NAMES.get(name) or next(iter(difflib.get_close_matches(name.lower(), known, 1)), None)
    return f"{name[:60]} (meant {meant}?)" if meant in known else name[:60]


# --- numbers and strings --------------------------------------------------------------------------------


def _number(tensors: Tensors, name: str) -> float | int | None:
    """The one value of an optional tensor."""
    values = tensors.get(name)
    if values is None or values.size == 0:
        return None
    if values.size != 1 or values.dtype.kind not in "if":
        raise UserError(f"{name} must hold one number, found {values.size} of type {values.dtype}.")
    value = values.reshape(-1)[0]
    # What the client wrote: 0.01 as float32 is a little less, which would be out of range.
    number: float | int = float(str(value)) if values.dtype == np.float32 else value.item()
    return number


def _whole_number(tensors: Tensors, name: str) -> int | None:
    number = _number(tensors, name)
    if number is not None and not isinstance(number, int):
        raise UserError(f"{name} must be a whole number, found {number}.")
    return number


def _flag(tensors: Tensors, name: str) -> bool:
    values = tensors.get(name)
    if values is None or values.size == 0:
        return False
    if values.size != 1 or values.dtype.kind != "b":
        raise UserError(f"{name} must hold true or false, found {values.size} of type {values.dtype}.")
    return bool(values.reshape(-1)[0])


def _strings(tensors: Tensors, name: str) -> list[bytes]:
    values = tensors.get(name)
    found = [] if values is None else values.reshape(-1).tolist()
    if not all(isinstance(value, bytes) for value in found):
        raise UserError(f"{name} must hold strings (TYPE_STRING, BYTES), found {values.dtype}.")  # type: ignore[union-attr]
    return found


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8: {error}.") from None


def _generation_config(
    tensors: Tensors, defaults: GenerationConfig, limits: RequestLimits
) -> GenerationConfig:
    sampling: dict[str, Any] = {name: _number(tensors, name) for name in _SAMPLING}
    max_tokens = bounded_max_tokens(_whole_number(tensors, "max_tokens"), defaults, limits)
    return override_generation_config(defaults, max_new_tokens=max_tokens, **sampling)


# --- messages -------------------------------------------------------------------------------------------


def _messages(tensors: Tensors, limits: RequestLimits) -> list[dict[str, Any]]:
    texts = _strings(tensors, "messages")
    if len(texts) != 1:
        raise UserError(f"messages must hold one JSON text, found {len(texts)}.")
    return read_messages(texts[0], limits)
