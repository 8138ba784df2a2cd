"""One decoded frame as a player shows it: turned and mirrored, in its shape, on white, in the range of a screen.

Stated choices: of interlaced frames the upper field is taken; HDR of both kinds, PQ and HLG, is brought to a screen
whose white is 203 nits, what is brighter is pressed together above, and colours of BT.2020 become those of BT.709.
"""

from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.processor.images import rgb_from_image
from export.processor.media.limits import MAX_PICTURE_PIXELS

_PQ_TRANSFER, _HLG_TRANSFER = 16, 18
_WIDE_PRIMARIES = 9
_WIDE_TO_SCREEN = (
    1.6605, -0.5876, -0.0728, 0,
    -0.1246, 1.1329, -0.0083, 0,
    -0.0182, -0.1006, 1.1187, 0,
)  # fmt: skip
"""Primaries of BT.2020 to those of BT.709 (ITU-R BT.2087), here on encoded values: close, and quick."""
_MAX_RATIO = 10


def display_matrix(frame: av.VideoFrame) -> bytes | None:
    """How the frame is turned and mirrored before it is shown, as FFmpeg says it; None: it does not say."""
    side_data: Any = frame.side_data  # PyAV's own types know no names
    matrix = side_data.get("DISPLAYMATRIX")
    return None if matrix is None else bytes(matrix)


def shown_image(
    frame: av.VideoFrame, sample_aspect_ratio: Fraction | None, matrix: bytes | None = None
) -> Image.Image:
    """RGB, the right way up and in the shape in which it is shown.

    Args:
        frame: as decoded.
        sample_aspect_ratio: width of a pixel by its height; None or 0: square.
        matrix: the `display_matrix` that holds for it.
    """
    image = _rgb(frame)
    if frame.color_trc in {_PQ_TRANSFER, _HLG_TRANSFER}:
        to_screen = _pq_to_screen() if frame.color_trc == _PQ_TRANSFER else _hlg_to_screen()
        image = image.point(to_screen * 3)
        if frame.color_primaries == _WIDE_PRIMARIES:
            image = image.convert("RGB", _WIDE_TO_SCREEN)
    size = _shown_size(frame.width, frame.height, sample_aspect_ratio)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return image if matrix is None else _turned(image, matrix)


def _rgb(frame: av.VideoFrame) -> Image.Image:
    has_alpha = frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components)
    # FFmpeg would start threads for every frame, whose stacks a media process has no room for.
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgba" if has_alpha else "rgb24", threads=1).astype(
        np.uint8, copy=False
    )
    if frame.interlaced_frame:
        pixels = np.ascontiguousarray(pixels[::2])
    image = Image.fromarray(pixels)
    return rgb_from_image(image) if has_alpha else image


def _shown_size(width: int, height: int, ratio: Fraction | None) -> tuple[int, int]:
    if not ratio or not Fraction(1, _MAX_RATIO) <= ratio <= _MAX_RATIO:
        return width, height
    # Enlarged, so that nothing is lost before the size that the model sees.
    size = (round(width * ratio), height) if ratio > 1 else (width, round(height / ratio))
    return size if size[0] * size[1] <= MAX_PICTURE_PIXELS else (width, height)


def _turned(image: Image.Image, matrix: bytes) -> Image.Image:
    """Apply the display matrix [a b; c d], by quarters and mirrors: x' = a x + c y, y' = b x + d y."""
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(a) + abs(d) < abs(b) + abs(c):
        image = image.transpose(Image.Transpose.TRANSPOSE)
        a, d = c, b
    if a < 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if d < 0:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image


@lru_cache
def _pq_to_screen() -> list[int]:
    """PQ's 8-bit codes (SMPTE ST 2084) to those of a screen."""
    codes = np.arange(256) / 255
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    powers = codes ** (1 / m2)
    return _screen_codes(10_000 * (np.maximum(powers - c1, 0) / (c2 - c3 * powers)) ** (1 / m1))


@lru_cache
def _hlg_to_screen() -> list[int]:
    """HLG's 8-bit codes (ITU-R BT.2100) as a display of 1,000 nits shows them, to those of a screen.

    The display's gamma of 1.2 is applied to each channel, not to their brightness: 75 %, the white of the scene, is
    203 nits in either way.
    """
    codes = np.arange(256) / 255
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(codes <= 0.5, codes**2 / 3, (np.exp((codes - c) / a) + b) / 12)
    return _screen_codes(1000 * scene**1.2)


def _screen_codes(nits: NDArray[np.float64]) -> list[int]:
    """8-bit codes of a screen whose white is 203 nits (ITU-R BT.2408)."""
    light = nits / 203
    # Linear up to 0.75 of white, then a shoulder that reaches white at 1,000 nits.
    knee, peak = 0.75, 1000 / 203
    shoulder = knee + (1 - knee) * np.log1p(np.maximum(light - knee, 0)) / np.log1p(peak - knee)
    light = np.clip(np.where(light <= knee, light, shoulder), 0, 1)
    encoded: list[int] = np.rint(255 * light ** (1 / 2.2)).astype(int).tolist()
    return encoded
