from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.errors import UserError
from export.processor.media.budget import LOW_DETAIL_PIXELS, read_budget
from export.processor.media.decode import LocalReader
from export.processor.media.limits import MediaLimits
from export.processor.settings import PIXELS_PER_TOKEN, ImageSettings, VideoSettings
from tests.support.pictures import encoded, moving_frames, numbered_frame, picture, shown_number, video_file

READER = LocalReader(ImageSettings(), VideoSettings())


@pytest.fixture(scope="module")
def film():
    """Ten seconds, 30 frames a second; each shows its number."""
    return video_file([numbered_frame(i) for i in range(300)], fps=30)


@pytest.fixture(scope="module")
def photo():
    return encoded(picture(448, 448), "PNG")


def seen(kind: str, source: Any, reader: LocalReader = READER, **asked: Any):
    return reader.decode(kind, source, read_budget(kind, asked, "Part 0"))


def tokens(decoded):
    height, width = decoded.frames[0].shape[:2]
    return height * width // PIXELS_PER_TOKEN


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({}, (448, 448)),
        ({"max_pixels": 4 * 784}, (56, 56)),
        ({"min_pixels": 400 * 784}, (560, 560)),
        ({"resized_height": 56, "resized_width": 84}, (56, 84)),
        ({"resized_height": 57, "resized_width": 70}, (56, 56)),  # to multiples of 28, half to even
        ({"max_pixels": 100 * 784, "min_pixels": 50 * 784}, (280, 280)),
    ],
)
def test_a_picture_has_the_size_that_is_asked_for(photo, asked, size):
    assert seen("image", photo, **asked).frames[0].shape[:2] == size


@pytest.mark.parametrize("asked", [{}, {"max_pixels": 50 * 784}, {"min_pixels": 784 * 300}])
@pytest.mark.parametrize(("width", "height"), [(448, 448), (1000, 333), (57, 900)])
def test_sizes_are_those_of_qwen_vl_utils(asked, width, height):
    """Its `smart_resize`, written apart: least 4 tokens, most 16384."""
    least, most = asked.get("min_pixels", 4 * 784), asked.get("max_pixels", 16384 * 784)
    h, w = max(28, round(height / 28) * 28), max(28, round(width / 28) * 28)
    if h * w > most:
        beta = (height * width / most) ** 0.5
        h, w = int(height / beta / 28) * 28, int(width / beta / 28) * 28
    elif h * w < least:
        beta = (least / (height * width)) ** 0.5
        h, w = -int(-height * beta // 28) * 28, -int(-width * beta // 28) * 28
    reader = replace(READER, image_settings=ImageSettings(max_pixels=16384 * 784))
    found = seen("image", encoded(picture(width, height), "PNG"), reader, **asked)
    assert found.frames[0].shape[:2] == (h, w)


def numbers(decoded):
    return [shown_number(frame) for frame in decoded.frames]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, [15 * i for i in range(20)]),
        ({"fps": 1.0}, [30 * i for i in range(10)]),
        ({"fps": 4}, [int(7.5 * i) for i in range(40)]),
        ({"nframes": 8}, [300 * i // 8 for i in range(8)]),
        ({"nframes": 9}, [300 * i // 8 for i in range(8)]),  # rounded to even, half to even
        ({"max_frames": 8}, [300 * i // 8 for i in range(8)]),
        ({"max_frames": 9}, [300 * i // 8 for i in range(8)]),  # rounded down
        ({"min_frames": 29}, [10 * i for i in range(30)]),  # rounded up
        ({"max_frames": 2}, [0, 150]),
        ({"video_start": 1.0, "video_end": 2.0}, [30, 37, 45, 53]),  # 31 frames, four at least
        ({"video_start": 5.0}, [150 + 15 * i for i in range(10)]),
        ({"video_end": 4.98}, [15 * i for i in range(10)]),
        ({"video_start": 9.0, "nframes": 6}, [270, 275, 280, 285, 290, 295]),
    ],
)
def test_frames_are_those_that_are_asked_for(film, asked, expected):
    decoded = seen("video", film, **asked)
    assert numbers(decoded) == expected
    assert decoded.seconds == pytest.approx([number / 30 for number in expected], abs=0.001)


def test_pixels_of_a_video_are_shared_among_its_frames(film):
    assert tokens(seen("video", film)) == 140  # 128 at least
    assert tokens(seen("video", film, min_pixels=784, max_pixels=20 * 784)) <= 20
    total = seen("video", film, total_pixels=100 * 784)
    assert tokens(total) * len(total.frames) // 2 <= 100
    sized = seen("video", film, resized_height=56, resized_width=84)
    assert sized.frames[0].shape[:2] == (56, 84)


def test_a_stretch_of_a_slideshow_has_the_slide_that_stands_then():
    first, *others = [Image.fromarray(numbered_frame(i)) for i in range(5)]
    delays = [60_000, 60_000, 60_000, 30_000, 60_000]
    slides = encoded(first, "WEBP", save_all=True, append_images=others, duration=delays, lossless=True)
    assert numbers(seen("video", slides, video_start=130.0, video_end=185.0)) == [2, 3]
    assert numbers(seen("video", slides, video_start=30.0, video_end=45.0)) == [0]
    assert all(a < b for a, b in pairwise(seen("video", slides, video_start=61.0).seconds))


@pytest.mark.parametrize(
    ("kind", "asked", "says"),
    [
        ("image", {"max_pixels": 0}, "max_pixels must be a whole number of at least 1"),
        ("image", {"max_pixels": 1.5}, "max_pixels must be a whole number"),
        ("image", {"max_pixels": True}, "max_pixels must be a whole number"),
        ("image", {"max_pixels": "784"}, "max_pixels must be a whole number"),
        ("image", {"max_pixels": 10**12}, "max_pixels must be a whole number"),
        ("image", {"max_pixels": 10**9}, "max_pixels is 1000000000; at most 12845056"),
        ("image", {"min_pixels": 10**9}, "min_pixels is 1000000000; at most"),
        ("image", {"min_pixels": 1000, "max_pixels": 999}, "min_pixels 1000 is above max_pixels 999"),
        ("image", {"resized_height": 56}, "resized_height and resized_width need each other"),
        ("image", {"resized_height": 56, "resized_width": 56, "max_pixels": 784}, "leave nothing for"),
        ("image", {"resized_height": 28, "resized_width": 28 * 300}, "more than 200 times"),
        ("image", {"resized_height": 10**5, "resized_width": 10**5}, "at most 12845056"),
        ("image", {"fps": 1.0}, "fps is no budget of a part of type image"),
        ("video", {"fps": 0}, "fps must be a number above 0"),
        ("video", {"fps": float("nan")}, "fps must be a number above 0"),
        ("video", {"fps": 1.0, "nframes": 4}, "fps and nframes exclude each other"),
        ("video", {"nframes": 4, "max_frames": 4}, "nframes leaves nothing for"),
        ("video", {"nframes": 1}, "nframes must be a whole number of at least 2"),
        ("video", {"nframes": 400}, "has 300 frames to choose from; nframes asks for 400"),
        ("video", {"max_frames": 10_000}, "max_frames is 10000; at most 768"),
        ("video", {"min_frames": 10, "max_frames": 4}, "min_frames 10 is above max_frames 4"),
        ("video", {"total_pixels": 10**8}, "total_pixels is 100000000; at most 12845056"),
        ("video", {"max_pixels": 10**7}, "max_pixels is 10000000; at most 602112"),
        ("video", {"video_start": 3, "video_end": 3}, "video_start 3 is not before video_end 3"),
        ("video", {"video_start": 30}, r"lasts 10\.00 s: it has no frame from 30 s to its end"),
        ("video", {"video_start": -1}, "video_start must be a number of at least 0"),
        ("video", {"resized_height": 1400, "resized_width": 1400}, "at most 602112"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_its_name(photo, film, kind, asked, says):
    with pytest.raises(UserError, match=says):
        seen(kind, photo if kind == "image" else film, **asked)


def test_all_that_is_wrong_comes_at_once():
    with pytest.raises(UserError, match=r"Part 0 asks .*fps must be.*nframes must be.*exclude each other"):
        read_budget("video", {"fps": -1, "nframes": "x"}, "Part 0")


def test_null_is_absent():
    asked = dict.fromkeys(("fps", "nframes", "max_pixels"))
    assert read_budget("video", asked, "x") == read_budget("video", {}, "x")


def test_a_list_has_no_clock_to_follow_and_frames_to_choose_from():
    frames = moving_frames(20)
    assert len(seen("video", frames, nframes=4).frames) == 4
    assert len(seen("video", frames, max_frames=6).frames) == 6
    clocked: list[dict[str, Any]] = [{"fps": 1.0}, {"video_start": 1.0}]
    for asked in clocked:
        with pytest.raises(UserError, match="has no clock"):
            seen("video", frames, **asked)


def test_a_servers_own_bound_holds_for_every_part(photo):
    bounded = replace(READER, limits=MediaLimits(max_seen_pixels=100 * 784))
    assert tokens(seen("image", photo, bounded, max_pixels=100 * 784)) <= 100
    too_much: list[dict[str, Any]] = [
        {"max_pixels": 101 * 784},
        {"min_pixels": 101 * 784},
        {"resized_height": 560, "resized_width": 560},
    ]
    for asked in too_much:
        with pytest.raises(UserError, match="at most 78400 is allowed here"):
            seen("image", photo, bounded, **asked)


def test_low_detail_is_a_picture_of_512_pixels_a_side():
    large = encoded(picture(1200, 1200), "PNG")
    assert np.prod(seen("image", large, detail="low").frames[0].shape[:2]) <= 512 * 512
    assert (
        seen("image", large, detail="low").frames[0].shape
        == seen("image", large, max_pixels=LOW_DETAIL_PIXELS).frames[0].shape
    )


@pytest.mark.parametrize("kind", ["image", "video"])
def test_low_detail_is_followed_where_less_than_that_is_allowed(kind):
    limits = MediaLimits(max_seen_pixels=4 * 784)
    settings = ImageSettings(max_pixels=4 * 784)
    low = read_budget(kind, {"detail": "low"}, "A part")
    assert low.image_settings(settings, limits).max_pixels == 4 * 784
    assert low.video_settings(VideoSettings(), limits).frame.max_pixels == 4 * 784
    roomy = low.image_settings(ImageSettings(max_pixels=10**7), MediaLimits())
    assert roomy.max_pixels == LOW_DETAIL_PIXELS
    assert roomy.min_pixels <= roomy.max_pixels


def test_a_parts_low_detail_and_a_general_size_do_not_meet():
    low = read_budget("image", {"detail": "low"}, "A part")
    general = read_budget("video", {"max_pixels": 784, "fps": 1.0}, "All")
    assert low.beside(general, "image") == low
    assert read_budget("image", {}, "A part").beside(low, "image") == low
    with pytest.raises(UserError, match="detail low and max_pixels, min_pixels contradict each other"):
        read_budget("image", {"detail": "low", "min_pixels": 1, "max_pixels": 2}, "A part")
