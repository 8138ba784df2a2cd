"""Which sizes are measured: ladders up to what the engine, its slots and the checkpoint's processor allow."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from export.processor.resize import smart_resize
from export.processor.settings import ImageSettings

_SIDES = (224, 448, 896, 1792, 3584)
_STEP = 4


@dataclass(frozen=True)
class ImageSize:
    """A square picture, and what the processor makes of it."""

    side: int
    num_patches: int

    @property
    def case(self) -> str:
        return f"{self.side} x {self.side} pixels, {self.num_patches} patches"


def image_sizes(settings: ImageSettings) -> list[ImageSize]:
    """From small to the largest that the processor does not make smaller."""
    sizes: list[ImageSize] = []
    for side in _SIDES:
        height, width = smart_resize(side, side, settings)
        patches = (height // settings.patch_size) * (width // settings.patch_size)
        if not sizes or patches > sizes[-1].num_patches:
            sizes.append(ImageSize(side, patches))
    return sizes


def jpeg_of(size: ImageSize, number: int = 0) -> bytes:
    """A photograph's stand-in: smooth shades under some noise. Another number is another picture."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((size.side, size.side), Image.Resampling.BICUBIC)
    noise = random.integers(-12, 13, (size.side, size.side, 3), dtype=np.int16)
    pixels = np.clip(np.asarray(smooth, np.int16) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=90)
    return file.getvalue()


def lengths_up_to(longest: int, shortest: int) -> list[int]:
    """Four times as much each, the longest included."""
    lengths = []
    length = min(shortest, longest)
    while length < longest:
        lengths.append(length)
        length *= _STEP
    return [*lengths, longest]
