"""The pictures and videos of one request: from what stands in its messages to bytes, counted, weighed and measured.

A picture is only ever bytes that the client sent or, where an operator allows it, a web address. A path never is: the
server must not read its own files for a stranger.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from engines.serving.limits import RequestLimits
from engines.serving.media.fetching import Fetcher
from export.errors import UserError
from export.processor.media.budget import KEYS_OF, NO_BUDGET, Budget, read_budget
from export.processor.media.data_urls import (
    bytes_from_base64,
    bytes_from_data_url,
    is_data_url,
    looks_like_base64,
)
from export.processor.media.decode import MediaReader
from export.processor.media.limits import MediaLimits
from export.processor.processor import Processor
from export.processor.resize import smart_resize
from export.processor.text.conversation import Medium, read_part

_MEDIA_PREFIX = "media:"
_FETCHED_TOGETHER = 4
"""Of one request: a page of pictures comes in a quarter of the time, and no host sees a crowd."""


def media_limits(processor: Processor, limits: RequestLimits) -> MediaLimits:
    """What decoders hold to; a client may ask for what the processor's budget allows, not more."""
    return MediaLimits(
        max_video_frames=limits.max_video_frames,
        max_seen_pixels=processor.image_settings.max_pixels,
        max_seen_frames=limits.max_seen_frames,
        strict=limits.strict_media,
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
        budget: Budget = NO_BUDGET,
    ) -> None:
        self._files, self._limits, self._fetcher = files, limits, fetcher
        self._deadline, self._is_cancelled, self._budget = deadline, is_cancelled, budget
        self._unused = set(range(len(files)))
        self._counts = {"image": 0, "video": 0}
        self._num_frames = 0
        self._pictures: list[bytes] = []
        self._budgets: list[Budget] = []
        """Of the pictures, in their order."""
        self._listed_frames: list[bytes] = []
        self._num_bytes = 0
        self._fetched: dict[str, Future[bytes]] = {}

    def fetch_together(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Fetch what the messages show from the web, several at a time; each then counts where it is resolved.

        What cannot be fetched, and what would be too many or too much, is told there.
        """
        addresses = list(dict.fromkeys(address for message in messages for address in _addresses(message)))
        if self._fetcher is None or len(addresses) < 2:
            return
        fetch, num_bytes = self._fetcher.fetch, 0
        most = self._limits.max_pictures + self._limits.max_videos
        with ThreadPoolExecutor(_FETCHED_TOGETHER, thread_name_prefix="fetch") as threads:
            for start in range(0, min(len(addresses), most), _FETCHED_TOGETHER):
                some = addresses[start : start + _FETCHED_TOGETHER]
                for address in some:
                    self._fetched[address] = threads.submit(
                        fetch, address, deadline=self._deadline, is_cancelled=self._is_cancelled
                    )
                for address in some:
                    if self._fetched[address].exception() is not None:
                        return
                    num_bytes += len(self._fetched[address].result())
                if num_bytes > self._limits.max_media_bytes:
                    return

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
        if isinstance(kind, str) and kind in self._counts:
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
        budget = budget.beside(self._budget, kind)
        self._counts[kind] += 1
        if self._counts[kind] > most:
            raise UserError(f"A request holds at most {most} of type {kind}; this one has more.")
        if kind == "video" and isinstance(reference, list):
            return {"type": kind, kind: self._frames(reference), **budget.asked}
        data = self._weighed(kind, reference)
        if kind == "image":
            self._pictures.append(data)
            self._budgets.append(budget)
        return {"type": kind, kind: data, **budget.asked}

    def _frames(self, references: list[Any]) -> list[bytes]:
        """A video as a list of its frames, each a picture."""
        self._num_frames += len(references)
        if self._num_frames > self._limits.max_video_frames:
            raise UserError(
                f"The videos of a request have at most {self._limits.max_video_frames} frames, found more in lists."
            )
        frames = [self._weighed("image", reference) for reference in references]
        self._listed_frames += frames
        return frames

    def _weighed(self, kind: str, reference: Any) -> bytes:
        data = self._bytes(kind, reference)
        self._num_bytes += len(data)
        if self._num_bytes > self._limits.max_media_bytes:
            raise UserError(
                f"Pictures and videos of a request have at most {self._limits.max_media_bytes} bytes together."
            )
        return data

    def _bytes(self, kind: str, reference: Any) -> bytes:
        if not isinstance(reference, str):
            raise UserError(
                f'The {kind} must be a data: URL, base64 or "media:0", found {type(reference).__name__}.'
            )
        if reference.startswith(_MEDIA_PREFIX):
            return self._file(reference)
        scheme, colon, _ = reference[:40].partition("://")
        if is_data_url(reference) or not colon:
            return _from_text(reference, kind)
        if scheme.lower() not in {"http", "https"}:
            raise UserError(f"{scheme}:// addresses are never read.", "Send the file's bytes.")
        if self._fetcher is None:
            raise UserError("This server fetches no web addresses.", "Send the file's bytes.")
        if reference in self._fetched:
            return self._fetched[reference].result()
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
        sizes = reader.picture_sizes(self._pictures)
        for (width, height), budget in zip(sizes, self._budgets, strict=True):
            num_pixels += width * height
            settings = budget.image_settings(processor.image_settings, media_limits(processor, limits))
            rows, columns = budget.size(settings) or smart_resize(height, width, settings)
            num_tokens += (rows // processor.image_settings.factor) * (
                columns // processor.image_settings.factor
            )
        largest_frame = max(
            (width * height for width, height in reader.picture_sizes(self._listed_frames)), default=0
        )
        num_pixels = max(num_pixels, largest_frame)  # frames are decoded one by one
        if num_pixels > limits.max_picture_pixels:
            raise UserError(
                f"The pictures have {num_pixels} pixels together, this server decodes {limits.max_picture_pixels} at "
                "most.",
                "Send them smaller.",
            )
        if limits.max_context is not None and num_tokens > limits.max_context:
            raise UserError(
                f"The pictures take {num_tokens} tokens but the context holds {limits.max_context}.",
                "Send fewer or smaller ones.",
            )


def _addresses(message: Mapping[str, Any]) -> Iterator[str]:
    """Of pictures and videos alone, by the very reading that resolves them; what cannot be read is told there."""
    content = message.get("content")
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str | None):
            continue
        try:
            read = None if kind in KEYS_OF else read_part(part, "A part")
        except UserError:
            continue
        source = part.get(kind) if kind in KEYS_OF else read.source if isinstance(read, Medium) else None
        for one in source if isinstance(source, list) else [source]:
            if isinstance(one, str) and one[:8].lower().startswith(("http://", "https://")):
                yield one


def _from_text(text: str, kind: str) -> bytes:
    try:
        if is_data_url(text):
            return bytes_from_data_url(text, kind)
        if len(text) % 4 and not looks_like_base64(text):
            raise ValueError("a short text without padding is more likely a path")
        return bytes_from_base64(text)
    except ValueError:
        raise UserError(
            f'The {kind} is neither a data: URL nor base64 nor "media:0". A path is never read: send the file\'s bytes.'
        ) from None
