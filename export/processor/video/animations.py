"""Frames of an animated GIF, WebP or PNG: how many, how large, and how long each stands.

Read from the files' own blocks, without decoding a pixel, so that limits hold before the work.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from export.errors import UserError
from export.processor.media.limits import MAX_PICTURE_PIXELS, MediaLimits

_HASTE_MS, _BROWSER_MS = 10, 100
"""Browsers show a frame that asks for 10 ms or less for 100: such files are older than screens that could follow."""


@dataclass(frozen=True)
class Animation:
    """What the blocks of an animated picture say."""

    delays_ms: tuple[float, ...]
    """How long each frame stands, as browsers show it."""
    num_pixels: int
    """Canvas of each frame, all together: what decoding them costs."""


def read_animation(content: bytes, name: str, limits: MediaLimits) -> Animation | None:
    """The frames of an animated picture; None for other kinds of files.

    Raises:
        UserError: more frames or pixels than the limits allow.
    """
    for magic, walk in ((b"GIF8", _gif_frames), (b"\x89PNG", _png_frames), (b"RIFF", _webp_frames)):
        if content.startswith(magic):
            return _bounded(walk(content), name, limits)
    return None


_Frame = tuple[float, int, int]
"""Delay in ms, width and height of the canvas."""


def _bounded(frames: Iterator[_Frame], name: str, limits: MediaLimits) -> Animation:
    delays: list[float] = []
    num_pixels = 0
    try:
        for delay, width, height in frames:
            delays.append(delay if delay > _HASTE_MS else _BROWSER_MS)
            num_pixels += width * height
            if width * height > MAX_PICTURE_PIXELS:
                raise UserError(
                    f"{name} has frames of {width} x {height} pixels; at most {MAX_PICTURE_PIXELS} are decoded. "
                    "Shrink it."
                )
            if len(delays) > limits.max_video_frames:
                raise UserError(
                    f"{name} has more than {limits.max_video_frames} frames, which is the most that is read. Cut it."
                )
            if num_pixels > limits.max_animation_pixels:
                raise UserError(
                    f"{name} claims {len(delays)} frames or more, the last one of {width} x {height} pixels, more than "
                    f"{limits.max_animation_pixels} together. Shrink it or turn it into a video file."
                )
    except (struct.error, IndexError):
        pass  # cut off: what is there counts
    return Animation(tuple(delays), num_pixels)


def _gif_frames(content: bytes) -> Iterator[_Frame]:
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    place = 13 + _palette_bytes(flags)
    delay = 0.0
    while True:
        kind = content[place]
        place += 1
        if kind == 0x3B:
            return
        if kind == 0x21:  # an extension; label 0xF9 is the next frame's control
            if content[place] == 0xF9 and content[place + 1] >= 3:
                (hundredths,) = struct.unpack_from("<H", content, place + 3)
                delay = 10.0 * hundredths
            place = _after_sub_blocks(content, place + 1)
        elif kind == 0x2C:
            left, top, columns, rows, flags = struct.unpack_from("<HHHHB", content, place)
            # Readers enlarge the canvas for a frame that stands out of it.
            width, height = max(width, left + columns), max(height, top + rows)
            yield delay, width, height
            delay = 0.0
            place = _after_sub_blocks(content, place + 9 + _palette_bytes(flags) + 1)


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_sub_blocks(content: bytes, place: int) -> int:
    while length := content[place]:
        place += length + 1
    return place + 1


def _png_frames(content: bytes) -> Iterator[_Frame]:
    width, height = struct.unpack_from(">II", content, 16)
    place, is_animated, num_controls, has_data = 8, False, 0, False
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        if kind == b"IDAT" and not has_data:
            has_data = True
            if not is_animated:
                yield 0.0, width, height
        is_animated |= (
            kind == b"acTL"
        )  # what comes before the first frame is for readers that know no animation
        if kind == b"fcTL":
            numerator, denominator = struct.unpack_from(">HH", content, place + 8 + 20)
            num_controls += 1
            yield 1000 * numerator / (denominator or 100), width, height
        place += 12 + length


def _webp_frames(content: bytes) -> Iterator[_Frame]:
    place, is_animated = 12, False
    width = height = 0
    while place + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, place)
        if kind == b"VP8X":
            width, height = (
                1 + int.from_bytes(content[place + at : place + at + 3], "little") for at in (12, 15)
            )
        if kind == b"ANMF":
            is_animated = True
            yield float(int.from_bytes(content[place + 20 : place + 23], "little")), width, height
        place += 8 + length + length % 2
    if not is_animated:
        yield 0.0, width, height
