"""The rows of `patches` from resized frames.

A row is one 14 x 14 patch of one temporal step, flattened as (channel, frame of the step, row, column): 3 * 2 * 14 *
14 = 1176 values. Rows are in merge order: the four patches that the vision encoder merges into one token stand
together, blocks run left to right, then down, then on in time.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from export.inputs import Grid
from export.processor.settings import ImageSettings


def grid_of_frames(frames: Sequence[NDArray[np.uint8]], settings: ImageSettings) -> Grid:
    """The grid of resized frames, each [H, W, 3]; the last one fills up an incomplete step."""
    height, width = frames[0].shape[:2]
    num_steps = -(-len(frames) // settings.temporal_patch_size)
    return num_steps, height // settings.patch_size, width // settings.patch_size


def write_patches(
    frames: Sequence[NDArray[np.uint8]], settings: ImageSettings, out: NDArray[np.float32]
) -> None:
    """Rescale, normalize and cut up the frames of one picture or video.

    Args:
        frames: resized frames, each uint8 [H, W, 3] with sides that are multiples of `settings.factor`. A picture is
            one frame, which stands for every frame of its step.
        out: float32 [P, patch_values], P = steps * H * W / patch_size**2; every value is written.
    """
    temporal = settings.temporal_patch_size
    steps = [frames[first : first + temporal] for first in range(0, len(frames), temporal)]
    for step, rows in zip(steps, np.split(out, len(steps)), strict=True):
        _write_step(step, settings, rows)


def _write_step(step: Sequence[NDArray[np.uint8]], settings: ImageSettings, out: NDArray[np.float32]) -> None:
    patch, merge, temporal = settings.patch_size, settings.merge_size, settings.temporal_patch_size
    num_blocks, channels = step[0].shape[0] // settings.factor, step[0].shape[2]
    # One row of blocks at a time: the gathered values stay in the cache until they are written for good.
    blocks = out.reshape(
        num_blocks, -1, channels, temporal, patch * patch
    )  # [block rows, patches, C, frames, 14*14]
    for k, frame in enumerate(step):
        last = temporal if k == len(step) - 1 else k + 1
        tiles = frame.reshape(num_blocks, merge, patch, -1, merge, patch, channels)
        for tile, block in zip(tiles, blocks, strict=True):
            pixels = tile.transpose(5, 2, 0, 3, 1, 4).reshape(
                channels, -1, patch * patch
            )  # [C, patches, 14*14]
            for c, table in enumerate(normalization_table(settings)):
                values = np.take(table, pixels[c], mode="clip")
                block[:, c, k:last] = values[:, None]


@lru_cache(maxsize=8)
def normalization_table(settings: ImageSettings) -> NDArray[np.float32]:
    """What each of the 256 pixel values of each channel becomes: float32 [3, 256].

    The rounding steps are Transformers' (rescale in float64, round to float32, then subtract and divide in float32),
    so a look-up gives bit-equal values for a quarter of the arithmetic.
    """
    mean = np.array(settings.image_mean, dtype=np.float32)[:, None]
    std = np.array(settings.image_std, dtype=np.float32)[:, None]
    rescaled = (np.arange(256, dtype=np.float64) * settings.rescale_factor).astype(np.float32)
    table: NDArray[np.float32] = (rescaled - mean) / std
    table.setflags(write=False)
    return table
