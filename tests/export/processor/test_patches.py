from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageOps

from export.processor.images import load_image
from export.processor.media.decode import resized_image
from export.processor.media.deep_grey import DEEP_MODES, grey_from_deep
from export.processor.patches import grid_of_frames, normalization_table, write_patches
from export.processor.settings import ImageSettings
from tests.support.pictures import picture, varied_pictures

SETTINGS = ImageSettings(max_pixels=400 * 28 * 28)


def patches_of(frames, settings=SETTINGS):
    grid = grid_of_frames(frames, settings)
    out = np.full((np.prod(grid), settings.patch_values), np.nan, np.float32)
    write_patches(frames, settings, out)
    return out, grid


@cache
def transformers_processor(settings):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    size = {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}
    return Qwen2VLImageProcessorPil(size=size)


def transformers_patches(image, settings=SETTINGS):
    result = transformers_processor(settings)(images=[image], return_tensors="np")
    return result["pixel_values"], tuple(result["image_grid_thw"][0].tolist())


def test_more_than_200_pictures_equal_transformers_pillow_processor_bit_for_bit():
    num_pictures = 0
    for name, image in varied_pictures():
        upright = ImageOps.exif_transpose(image)
        # Grey of more than 8 bits, which Transformers clips to white, is scaled first (test_deep_grey.py).
        upright = grey_from_deep(upright) if image.mode in DEEP_MODES else upright
        expected, expected_grid = transformers_patches(upright)
        patches, grid = patches_of([resized_image(load_image(image), SETTINGS)])
        assert grid == expected_grid, name
        assert patches.dtype == expected.dtype
        assert np.array_equal(patches.view(np.uint32), expected.view(np.uint32)), name
        num_pictures += 1
    assert num_pictures > 200


@pytest.mark.parametrize(
    "settings", [ImageSettings(), ImageSettings(max_pixels=16384 * 784, min_pixels=100 * 784)]
)
def test_a_large_picture_equals_transformers_at_other_budgets(settings):
    image = picture(1500, 900)
    expected, expected_grid = transformers_patches(image, settings)
    patches, grid = patches_of([resized_image(image, settings)], settings)
    assert grid == expected_grid
    assert np.array_equal(patches, expected)


def test_a_video_of_equal_frames_has_the_rows_of_the_picture_in_every_step():
    frame = resized_image(picture(100, 80), SETTINGS)
    of_picture, _ = patches_of([frame])
    of_video, grid = patches_of([frame, frame.copy(), frame, frame.copy()])
    assert grid[0] == 2
    assert np.array_equal(of_video, np.tile(of_picture, (2, 1)))


def test_an_odd_last_frame_is_repeated():
    frames = [resized_image(picture(60, 60, seed=seed), SETTINGS) for seed in range(3)]
    odd, grid = patches_of(frames)
    even, even_grid = patches_of([*frames, frames[-1]])
    assert grid == even_grid == (2, 4, 4)
    assert np.array_equal(odd, even)


@given(
    rows=st.integers(1, 4), columns=st.integers(1, 4), steps=st.integers(1, 3), seed=st.integers(0, 2**32 - 1),
    patch_size=st.sampled_from([2, 14]), merge_size=st.sampled_from([1, 2, 3]), temporal=st.sampled_from([1, 2, 3]),
)  # fmt: skip
def test_every_value_stands_where_the_flatten_order_says(
    rows, columns, steps, seed, patch_size, merge_size, temporal
):
    settings = ImageSettings(patch_size=patch_size, merge_size=merge_size, temporal_patch_size=temporal)
    side = settings.factor
    rng = np.random.default_rng(seed)
    shape = (rows * side, columns * side, 3)
    frames = [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(steps * temporal)]
    patches, grid = patches_of(frames, settings)
    table = normalization_table(settings)
    index = 0
    for t in range(grid[0]):
        for block_row in range(rows):
            for block_column in range(columns):
                for row in range(merge_size):
                    for column in range(merge_size):
                        top = (block_row * merge_size + row) * patch_size
                        left = (block_column * merge_size + column) * patch_size
                        step = np.stack(frames[t * temporal : (t + 1) * temporal])
                        pixels = step[:, top : top + patch_size, left : left + patch_size]  # [k, y, x, c]
                        expected = np.stack([table[c][pixels[..., c]] for c in range(3)])  # [c, k, y, x]
                        assert np.array_equal(patches[index], expected.ravel())
                        index += 1
    assert index == len(patches)


def test_the_look_up_table_follows_the_settings():
    settings = replace(SETTINGS, rescale_factor=1.0, image_mean=(10.0, 20.0, 30.0), image_std=(2.0, 4.0, 8.0))
    table = normalization_table(settings)
    assert table[:, 0].tolist() == [-5.0, -5.0, -3.75]
    assert table[:, 255].tolist() == [122.5, 58.75, 28.125]
