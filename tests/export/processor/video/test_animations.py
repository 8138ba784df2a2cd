import struct
import time

import pytest

from export.errors import UserError
from export.processor.media.limits import DEFAULT_LIMITS, MediaLimits
from export.processor.video.animations import read_animation
from tests.support.pictures import encoded, picture


def read(content, limits=DEFAULT_LIMITS):
    return read_animation(content, "sent", limits)


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_delays_and_pixels_are_those_that_were_written(format_):
    images = [picture(40, 30, seed=seed) for seed in range(4)]
    content = encoded(
        images[0], format_, save_all=True, append_images=images[1:], duration=[50, 200, 1000, 20]
    )
    found = read(content)
    assert found.delays_ms == (50, 200, 1000, 20)
    assert found.num_pixels == 4 * 40 * 30


def test_a_delay_that_no_screen_could_follow_is_the_browsers():
    images = [picture(40, 30, seed=seed) for seed in range(3)]
    assert (
        read(encoded(images[0], "GIF", save_all=True, append_images=images[1:], duration=10)).delays_ms
        == (100,) * 3
    )


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_a_still_picture_has_one_frame(format_):
    assert len(read(encoded(picture(40, 30), format_)).delays_ms) == 1


def test_other_kinds_are_no_animations():
    assert read(encoded(picture(40, 30), "JPEG")) is None


def gif(*frames, canvas=(1, 1)):
    """Frames as (width, height), each with one byte of data."""
    head = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0, 0, 0)
    return (
        head
        + b"".join(b"," + struct.pack("<HHHHB", 0, 0, *size, 0) + b"\x08\x01\x00\x00" for size in frames)
        + b";"
    )


def test_a_canvas_that_grows_on_the_way_counts_as_it_grows():
    content = gif((1, 1), *[(6000, 6000)] * 30)
    assert read(content).num_pixels == 1 + 30 * 6000 * 6000
    with pytest.raises(UserError, match="the last one of 6000 x 6000"):
        read(content, MediaLimits(max_animation_pixels=6000 * 6000 * 20))
    with pytest.raises(UserError, match="frames of 60000 x 60000 pixels"):
        read(gif((1, 1), (60_000, 60_000)))


def test_a_million_frames_are_refused_at_the_limit_and_not_after_all_of_them():
    content = gif(*[(1, 1)] * 1_000_000)
    start = time.perf_counter()
    with pytest.raises(UserError, match="more than 36000 frames"):
        read(content, MediaLimits(max_video_frames=36_000))
    assert time.perf_counter() - start < 1


def test_what_is_cut_off_counts_as_far_as_it_is_there():
    content = encoded(
        picture(40, 30), "GIF", save_all=True, append_images=[picture(40, 30, seed=i) for i in range(1, 4)]
    )
    for end in range(6, len(content), 50):
        assert len(read(content[:end]).delays_ms) <= 4
