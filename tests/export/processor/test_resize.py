from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.errors import UserError
from export.processor.resize import smart_resize, video_frame_size
from export.processor.settings import PIXELS_PER_TOKEN, ImageSettings, VideoSettings

SIDES = st.integers(1, 5000)
TOKENS = st.integers(1, 16384)


def settings_of(min_tokens, max_tokens):
    low, high = sorted((min_tokens, max_tokens))
    return ImageSettings(min_pixels=low * PIXELS_PER_TOKEN, max_pixels=high * PIXELS_PER_TOKEN)


def transformers_size(height, width, settings):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as theirs

    return theirs(height, width, 28, settings.min_pixels, settings.max_pixels)


@given(SIDES, SIDES, TOKENS, TOKENS)
def test_sizes_equal_transformers(height, width, min_tokens, max_tokens):
    settings = settings_of(min_tokens, max_tokens)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(UserError, match="more than 200 times"):
            smart_resize(height, width, settings)
    else:
        assert smart_resize(height, width, settings) == transformers_size(height, width, settings)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((42, 70), (56, 56)),  # halves round to even
        ((98, 98), (112, 112)),
        ((13, 2000), (28, 700)),  # a side that rounds to zero counts as too small
        ((1, 1), (56, 56)),
        ((1, 200), (28, 812)),
        ((1080, 1920), (728, 1316)),
    ],
)
def test_known_sizes(size, expected):
    assert smart_resize(size[0], size[1], ImageSettings()) == expected


def test_an_extreme_ratio_keeps_one_token_on_the_short_side():
    assert smart_resize(30, 6000, settings_of(4, 64)) == (28, 3164)


@given(SIDES, SIDES, TOKENS, TOKENS)
def test_a_resized_picture_keeps_its_size_when_resized_again(height, width, min_tokens, max_tokens):
    settings = settings_of(min_tokens, max_tokens)
    if max(height, width) <= 200 * min(height, width):
        size = smart_resize(height, width, settings)
        if settings.min_pixels <= size[0] * size[1] <= settings.max_pixels:
            assert smart_resize(size[0], size[1], settings) == size
        assert all(side % 28 == 0 and side > 0 for side in size)


@given(SIDES, SIDES, st.integers(1, 384))
def test_a_video_never_exceeds_its_tokens(height, width, num_steps):
    if max(height, width) > 200 * min(height, width):
        return
    new_height, new_width = video_frame_size(height, width, num_steps, VideoSettings())
    assert min(new_height, new_width) >= 28
    assert num_steps * new_height * new_width <= 16384 * PIXELS_PER_TOKEN


@given(SIDES, SIDES, st.integers(1, 21))
def test_short_videos_equal_transformers_with_the_paper_s_frame_budget(height, width, num_steps):
    settings = VideoSettings()
    if max(height, width) > 200 * min(height, width):
        return
    size = transformers_size(height, width, settings.frame)
    if num_steps * size[0] * size[1] <= 16384 * PIXELS_PER_TOKEN:
        assert video_frame_size(height, width, num_steps, settings) == size


def test_longer_videos_have_smaller_frames_and_the_longest_go_below_the_frame_minimum():
    tokens = [
        height * width // PIXELS_PER_TOKEN
        for height, width in (video_frame_size(1080, 1920, steps, VideoSettings()) for steps in (2, 40, 384))
    ]
    assert tokens == [720, 390, 32]


def test_the_total_holds_for_a_frame_so_elongated_that_one_side_is_a_single_token():
    settings = replace(VideoSettings(), max_tokens=20)
    assert video_frame_size(10, 2000, 2, settings) == (28, 280)
