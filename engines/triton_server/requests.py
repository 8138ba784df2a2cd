"""What did a client ask for, and may it?

Everything in a request is hostile until checked: sizes before decoding, picture headers before pixels, and a picture
is only ever bytes that the client sent or, where an operator allows it, a web address. A path never is: the server
must not read its own files for a stranger. All problems of a request come in one message, for that request alone.
"""

import base64
import binascii
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from engines.runtime.answer import Request
from engines.serving.fetching import Fetcher
from engines.serving.limits import RequestLimits
from engines.serving.messages import read_messages
from export.errors import UserError
from export.generation_config import GenerationConfig, override_generation_config
from export.processor.media.decode import LocalReader, MediaReader
from export.processor.media.limits import MediaLimits
from export.processor.processor import Processor
from export.processor.resize import smart_resize

Tensors = Mapping[str, npt.NDArray[Any]]
"""By name, as the server hands them over: TYPE_STRING as an object array of bytes."""

_MEDIA_PREFIX = "media:"
_BASE64_STEP = 1 << 20  # characters, whole groups of four
_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")


@dataclass(frozen=True)
class ChatRequest:
    """A request that may run."""

    request: Request
    stop_strings: tuple[str, ...]
    timeout_seconds: float


def parse_request(
    tensors: Tensors,
    processor: Processor,
    defaults: GenerationConfig,
    limits: RequestLimits,
    fetcher: Fetcher | None = None,
    make_reader: Callable[[LocalReader, float], MediaReader] | None = None,
) -> ChatRequest:
    """Check a request and make it ready for the scheduler.

    Args:
        tensors: of `interface.CHAT_INPUTS`; optional ones may be missing or empty.
        processor: the bundle's.
        defaults: the checkpoint's way of choosing tokens, where the client does not say.
        limits: what one request may hold.
        fetcher: for web addresses; None refuses them all.
        make_reader: what decodes media, from what would decode them here and the request's seconds; None: here.

    Raises:
        UserError: whatever is wrong with it; all problems that can be told apart, in one message.
    """
    problems = _Problems()
    with problems.collected():
        config = _generation_config(tensors, defaults, limits)
    with problems.collected():
        seed = _whole_number(tensors, "seed")
        timeout_seconds = _timeout_seconds(tensors, limits)
    with problems.collected():
        stop_strings = _stop_strings(tensors, limits)
    with problems.collected():
        messages = _messages(tensors, limits)
        media = _Media([bytes(file) for file in _strings(tensors, "media")], limits, fetcher)
        messages = [media.resolved(message) for message in messages]
        media.check()
    problems.raise_if_any()
    local = replace(processor.reader, limits=MediaLimits(max_video_frames=limits.max_video_frames))
    reader = make_reader(local, timeout_seconds) if make_reader else local
    media.check_before_decoding(processor, limits, reader)
    inputs = processor.inputs_from_messages(messages, reader, max_tokens=limits.max_context)
    return ChatRequest(Request(inputs, config, seed), stop_strings, timeout_seconds)


class _Problems:
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


# --- numbers and strings --------------------------------------------------------------------------------


def _number(tensors: Tensors, name: str) -> float | int | None:
    """The one value of an optional tensor."""
    values = tensors.get(name)
    if values is None or values.size == 0:
        return None
    if values.size != 1 or values.dtype.kind not in "if":
        raise UserError(f"{name} must hold one number, found {values.size} of type {values.dtype}.")
    number: float | int = values.reshape(-1)[0].item()
    return number


def _whole_number(tensors: Tensors, name: str) -> int | None:
    number = _number(tensors, name)
    if number is not None and not isinstance(number, int):
        raise UserError(f"{name} must be a whole number, found {number}.")
    return number


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
    max_tokens = _whole_number(tensors, "max_tokens")
    if max_tokens is None:
        max_tokens = min(defaults.max_new_tokens, limits.max_tokens)
    elif max_tokens > limits.max_tokens:
        raise UserError(f"max_tokens is {max_tokens}, this server allows {limits.max_tokens} at most.")
    return override_generation_config(defaults, max_new_tokens=max_tokens, **sampling)


def _timeout_seconds(tensors: Tensors, limits: RequestLimits) -> float:
    seconds = _number(tensors, "timeout_seconds")
    if seconds is None:
        return limits.timeout_seconds
    if not (math.isfinite(seconds) and 0 < seconds <= limits.timeout_seconds):
        raise UserError(
            f"timeout_seconds must be above 0 and at most {limits.timeout_seconds:g}, found {seconds:g}."
        )
    return seconds


def _stop_strings(tensors: Tensors, limits: RequestLimits) -> tuple[str, ...]:
    texts = tuple(_text(data, "stop") for data in _strings(tensors, "stop"))
    if len(texts) > limits.max_stop_strings or sum(map(len, texts)) > limits.max_stop_characters:
        raise UserError(
            f"At most {limits.max_stop_strings} stop strings of together {limits.max_stop_characters} characters are "
            f"taken, found {len(texts)} of {sum(map(len, texts))}."
        )
    if "" in texts:
        raise UserError("A stop string must not be empty.")
    return texts


# --- messages -------------------------------------------------------------------------------------------


def _messages(tensors: Tensors, limits: RequestLimits) -> list[dict[str, Any]]:
    texts = _strings(tensors, "messages")
    if len(texts) != 1:
        raise UserError(f"messages must hold one JSON text, found {len(texts)}.")
    return read_messages(texts[0], limits)


class _Media:
    """Pictures and videos of a request: from names to bytes, counted and weighed."""

    def __init__(self, files: Sequence[bytes], limits: RequestLimits, fetcher: Fetcher | None) -> None:
        self._files, self._limits, self._fetcher = files, limits, fetcher
        self._unused = set(range(len(files)))
        self._sources: dict[str, list[bytes]] = {"image": [], "video": []}
        self._num_bytes = 0

    def resolved(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message with bytes in the place of every reference."""
        content = message.get("content")
        if not isinstance(content, list):
            return message
        return {**message, "content": [self._resolved_part(part) for part in content]}

    def _resolved_part(self, part: Any) -> Any:
        if not isinstance(part, dict):
            return part  # the processor says what is wrong with it
        kind = part.get("type")
        if not isinstance(kind, str):
            return part
        if kind == "image_url":  # as OpenAI's clients send it
            address = part.get("image_url")
            return self._medium("image", address.get("url") if isinstance(address, dict) else address)
        if kind in self._sources:
            unknown = sorted(str(key) for key in part if key not in {"type", kind})
            if unknown:
                raise UserError(
                    f'A part of type {kind} holds "{kind}" alone; nothing here follows {", ".join(unknown)}.'
                )
            return self._medium(kind, part.get(kind))
        return part

    def _medium(self, kind: str, reference: Any) -> dict[str, Any]:
        most = self._limits.max_pictures if kind == "image" else self._limits.max_videos
        sources = self._sources[kind]
        if len(sources) >= most:
            raise UserError(f"A request holds at most {most} of type {kind}; this one has more.")
        data = self._bytes(kind, reference)
        self._num_bytes += len(data)
        if self._num_bytes > self._limits.max_media_bytes:
            raise UserError(
                f"Pictures and videos of a request have at most {self._limits.max_media_bytes} bytes together."
            )
        sources.append(data)
        return {"type": kind, kind: data}

    def _bytes(self, kind: str, reference: Any) -> bytes:
        if not isinstance(reference, str):
            raise UserError(
                f'The {kind} must be a data: URL, base64 or "media:0", found {type(reference).__name__}.'
            )
        if reference.startswith(_MEDIA_PREFIX):
            return self._file(reference)
        if reference.startswith("data:"):
            header, comma, payload = reference.partition(",")
            if not comma or not header.endswith(";base64"):
                raise UserError(f"A data: URL must be base64: data:{kind}/...;base64,....")
            return _from_base64(payload, kind)
        scheme, colon, _ = reference[:40].partition("://")
        if not colon:
            return _from_base64(reference, kind)
        if scheme.lower() not in {"http", "https"}:
            raise UserError(f"{scheme}:// addresses are never read. Send the file's bytes.")
        if self._fetcher is None:
            raise UserError("This server fetches no web addresses. Send the file's bytes.")
        return self._fetcher.fetch(reference)

    def _file(self, reference: str) -> bytes:
        number = reference.removeprefix(_MEDIA_PREFIX)
        if not (number.isascii() and number.isdigit() and len(number) < 6 and int(number) < len(self._files)):
            raise UserError(f"{reference[:40]!r} names none of the {len(self._files)} files in `media`.")
        self._unused.discard(int(number))
        return self._files[int(number)]

    def check(self) -> None:
        """Raise unless every file was asked about."""
        if self._unused:
            names = ", ".join(f'"{_MEDIA_PREFIX}{i}"' for i in sorted(self._unused)[:8])
            raise UserError(f"The messages show no {names}: a file in `media` that no message names.")

    def check_before_decoding(self, processor: Processor, limits: RequestLimits, reader: MediaReader) -> None:
        """Read headers alone: how much would there be to decode, and could it fit into the context?"""
        num_pixels = num_tokens = 0
        for width, height in reader.picture_sizes(self._sources["image"]):
            num_pixels += width * height
            rows, columns = smart_resize(height, width, processor.image_settings)
            num_tokens += (rows // processor.image_settings.factor) * (
                columns // processor.image_settings.factor
            )
        if num_pixels > limits.max_picture_pixels:
            raise UserError(
                f"The pictures have {num_pixels} pixels together, this server decodes {limits.max_picture_pixels} at "
                "most. Send them smaller."
            )
        if limits.max_context is not None and num_tokens > limits.max_context:
            raise UserError(
                f"The pictures take {num_tokens} tokens but the context holds {limits.max_context}. "
                "Send fewer or smaller ones."
            )


def _from_base64(text: str, kind: str) -> bytes:
    try:
        return b"".join(_decoded_steps(text))
    except (binascii.Error, ValueError):
        raise UserError(
            f'The {kind} is neither a data: URL nor base64 nor "media:0". A path is never read: send the file\'s bytes.'
        ) from None


def _decoded_steps(text: str) -> Iterator[bytes]:
    """In steps, because one call for a large file would let no other thread run.

    Raises:
        ValueError: the text is no base64.
    """
    for start in range(0, len(text), _BASE64_STEP):
        decoded = base64.b64decode(text[start : start + _BASE64_STEP], validate=True)
        if start + _BASE64_STEP < len(text) and len(decoded) < _BASE64_STEP // 4 * 3:
            raise ValueError("padding stands before the end")
        yield decoded
