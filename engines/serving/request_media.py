"""The pictures and videos of one request: from what stands in its messages to bytes, counted, weighed and measured.

A picture is only ever bytes that the client sent or, where an operator allows it, a web address. A path never is: the
server must not read its own files for a stranger.
"""

import base64
import binascii
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from engines.serving.fetching import Fetcher
from engines.serving.limits import RequestLimits
from export.errors import UserError
from export.processor.conversation import Medium, read_part
from export.processor.media.budget import KEYS_OF, Budget, read_budget
from export.processor.media.decode import MediaReader
from export.processor.media.limits import MediaLimits
from export.processor.processor import Processor
from export.processor.resize import smart_resize

_MEDIA_PREFIX = "media:"
_BASE64_STEP = 1 << 20  # characters, whole groups of four


def media_limits(processor: Processor, limits: RequestLimits) -> MediaLimits:
    """What decoders hold to; a client may ask for what the checkpoint's own budget allows, not more."""
    return MediaLimits(
        max_video_frames=limits.max_video_frames, max_seen_pixels=processor.image_settings.max_pixels
    )


class RequestMedia:
    """Pictures and videos of a request: from names to bytes, counted and weighed."""

    def __init__(
        self,
        files: Sequence[bytes],
        limits: RequestLimits,
        fetcher: Fetcher | None,
        *,
        deadline: float | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self._files, self._limits, self._fetcher = files, limits, fetcher
        self._deadline, self._is_cancelled = deadline, is_cancelled
        self._unused = set(range(len(files)))
        self._sources: dict[str, list[bytes]] = {"image": [], "video": []}
        self._budgets: list[Budget] = []
        """Of the pictures, in their order."""
        self._num_bytes = 0

    def resolved(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message with bytes in the place of every reference."""
        content = message.get("content")
        if not isinstance(content, list):
            return message
        return {**message, "content": [self._resolved_part(part, n) for n, part in enumerate(content)]}

    def _resolved_part(self, part: Any, index: int) -> Any:
        """The part with bytes in the place of a reference, in whatever dialect it stands.

        The very reading that the processor will do: no part that it takes for a picture passes by here as another.
        """
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind in self._sources:
            unknown = sorted(str(key) for key in part if key not in {"type", kind} | KEYS_OF[kind])
            if unknown:
                raise UserError(
                    f'A part of type {kind} holds "{kind}" alone, and budgets '
                    f"({', '.join(sorted(KEYS_OF[kind]))}); nothing here follows {', '.join(unknown)}."
                )
            asked = {key: value for key, value in part.items() if key in KEYS_OF[kind]}
            return self._medium(kind, part.get(kind), read_budget(kind, asked, f"Part {index}"))
        read = read_part(part, f"Part {index}")
        return self._medium(read.kind, read.source, read.budget) if isinstance(read, Medium) else part

    def _medium(self, kind: str, reference: Any, budget: Budget) -> dict[str, Any]:
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
        if kind == "image":
            self._budgets.append(budget)
        return {"type": kind, kind: data, **budget.asked}

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
        return self._fetcher.fetch(reference, deadline=self._deadline, is_cancelled=self._is_cancelled)

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
        sizes = reader.picture_sizes(self._sources["image"])
        for (width, height), budget in zip(sizes, self._budgets, strict=True):
            num_pixels += width * height
            settings = budget.image_settings(processor.image_settings, media_limits(processor, limits))
            rows, columns = budget.size(settings) or smart_resize(height, width, settings)
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
