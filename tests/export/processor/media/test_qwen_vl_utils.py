"""Grids and frame choices beside the publisher's own `qwen-vl-utils`, option by option.

What differs stands in a table of its own with the reason, as in docs/inputs.md, so that a change of either side shows.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.errors import UserError
from export.processor.media.budget import read_budget
from export.processor.media.decode import LocalReader
from export.processor.settings import PIXELS_PER_TOKEN, ImageSettings, VideoSettings
from tests.support.pictures import numbered_frame, picture, shown_number, video_file
from tests.support.qwen_vl_utils_peer import seen_picture, seen_video

# The published checkpoints' budgets, which are also the utilities' own.
READER = LocalReader(ImageSettings(max_pixels=16384 * PIXELS_PER_TOKEN), VideoSettings())
FILMS = ((300, 30), (100, 10), (61, 25), (5, 10), (3, 10), (1, 10))
"""Frames and frames a second."""


def seen(kind: str, source: Any, **asked: Any) -> np.ndarray:
    return np.stack(READER.decode(kind, source, read_budget(kind, asked, "Part 0")).frames)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> dict[int, Path]:
    """By the number of frames, each of which shows its own number."""
    pytest.importorskip("decord", reason="qwen-vl-utils needs a reader: decord has no build for this machine")
    folder = tmp_path_factory.mktemp("films")
    made = {}
    for num_frames, fps in FILMS:
        made[num_frames] = folder / f"{num_frames}.mp4"
        made[num_frames].write_bytes(video_file([numbered_frame(i) for i in range(num_frames)], fps=fps))
    return made


PICTURE_BUDGETS: list[dict[str, int]] = [
    {},
    {"min_pixels": 300 * PIXELS_PER_TOKEN},
    {"max_pixels": 50 * PIXELS_PER_TOKEN},
    {"max_pixels": 5000},
    {"min_pixels": 100 * PIXELS_PER_TOKEN, "max_pixels": 200 * PIXELS_PER_TOKEN},
    {"resized_height": 57, "resized_width": 70},
    {"resized_height": 280, "resized_width": 420},
    {"resized_height": 20, "resized_width": 1000},
]
SIZES = [(448, 448), (1000, 333), (42, 70), (1, 1), (20, 30), (900, 700), (97, 400)]


@pytest.mark.parametrize("asked", PICTURE_BUDGETS)
@pytest.mark.parametrize("size", SIZES)
def test_a_picture_is_the_same_to_the_bit(size, asked):
    source = picture(*size)
    assert np.array_equal(seen("image", source, **asked)[0], seen_picture(source, **asked))


@pytest.mark.parametrize(
    ("size", "asked", "theirs", "ours"),
    [
        # A side of less than half a token counts as none, as in Transformers: the picture is enlarged.
        ((13, 2000), {}, (1988, 28), (700, 28)),
        # The small side of an elongated picture, shrunk, stays a token.
        ((57, 900), {"max_pixels": 5000}, None, (280, 28)),
        ((97, 640), {"max_pixels": 5000}, None, (168, 28)),
        ((13, 2000), {"max_pixels": 50 * PIXELS_PER_TOKEN}, None, (700, 28)),
    ],
)
def test_elongated_pictures_differ(size, asked, theirs, ours):
    source = picture(*size)
    assert seen("image", source, **asked).shape[1:3] == ours
    if theirs is None:
        with pytest.raises(ValueError, match="must be > 0"):
            seen_picture(source, **asked)
    else:
        assert seen_picture(source, **asked).shape[:2] == theirs


def test_the_way_up_and_transparency_differ():
    turned = picture(90, 60)
    turned.getexif()[0x0112] = 6
    assert seen("image", turned).shape[1:3] == (84, 56)
    assert seen_picture(turned).shape[:2] == (56, 84)
    clear = Image.new("P", (56, 56))
    clear.info["transparency"] = 0
    assert seen("image", clear).min() == 255
    assert seen_picture(clear).max() == 0


VIDEO_BUDGETS: list[dict[str, Any]] = [
    {},
    {"fps": 1.0},
    {"fps": 4},
    {"fps": 0.2},
    {"fps": 2.5},
    {"nframes": 4},
    {"nframes": 8},
    {"nframes": 9},
    {"max_frames": 8},
    {"max_frames": 9},
    {"min_frames": 29},
    {"min_frames": 30, "max_frames": 40},
    {"fps": 1, "min_frames": 7, "max_frames": 11},
    {"video_start": 0.4},
    {"video_end": 2.0},
    {"video_start": 0.5, "video_end": 2.03},
    {"video_start": 1.0, "nframes": 6},
    {"video_end": 1.99, "fps": 3},
    {"min_pixels": 200 * PIXELS_PER_TOKEN},
    {"min_pixels": 200 * PIXELS_PER_TOKEN, "max_pixels": 300 * PIXELS_PER_TOKEN},
    {"min_pixels": PIXELS_PER_TOKEN, "max_pixels": 20 * PIXELS_PER_TOKEN},
    {"min_pixels": PIXELS_PER_TOKEN, "max_pixels": 20_000},
    {"total_pixels": 3000 * PIXELS_PER_TOKEN},
    {"total_pixels": 5000 * PIXELS_PER_TOKEN, "max_pixels": 140 * PIXELS_PER_TOKEN},
    {"total_pixels": 1000 * PIXELS_PER_TOKEN, "min_pixels": 16 * PIXELS_PER_TOKEN},
    {"total_pixels": 777 * PIXELS_PER_TOKEN, "min_pixels": 4 * PIXELS_PER_TOKEN, "nframes": 14},
    {"resized_height": 57, "resized_width": 84},
    {"resized_height": 280, "resized_width": 420, "fps": 1},
]


@pytest.mark.parametrize("asked", VIDEO_BUDGETS)
@pytest.mark.parametrize("num_frames", [100, 61])
def test_a_film_has_the_same_grid_and_frames_a_step_apart_at_most(films, num_frames, asked):
    """They take the first frame, the last, and what lies evenly between; we take the first of every equal stretch."""
    ours, theirs = seen("video", films[num_frames], **asked), seen_video(films[num_frames], **asked)
    assert ours.shape == theirs.shape
    numbers = np.array([[shown_number(frame) for frame in frames] for frames in (ours, theirs)])
    assert numbers[0, 0] == numbers[1, 0]
    assert (numbers[0] <= numbers[1]).all()
    length = numbers[1, -1] + 1 - numbers[1, 0]
    assert (numbers[1] - numbers[0]).max() < length / len(ours) + 0.5


@pytest.mark.parametrize(
    ("num_frames", "asked"),
    [
        (5, {"nframes": 8}),
        (61, {"nframes": 64}),
        (61, {"video_start": 3.0}),
        (100, {"video_start": 4.0, "video_end": 4.0}),
        (100, {"video_start": 5.0, "video_end": 4.0}),
        (100, {"fps": 1.0, "nframes": 4}),
    ],
)
def test_what_they_refuse_is_refused(films, num_frames, asked):
    with pytest.raises((ValueError, AssertionError)):
        seen_video(films[num_frames], **asked)
    with pytest.raises(UserError):
        seen("video", films[num_frames], **asked)


@pytest.mark.parametrize(
    ("num_frames", "asked", "theirs", "ours"),
    [
        # Clips shorter than min_frames are used whole.
        (5, {"min_frames": 8}, [0, 1, 3, 4], [0, 1, 2, 3, 4]),
        (3, {}, [0, 2], [0, 1, 2]),
        (1, {}, None, [0]),
        # The frame that begins at the end of a stretch of one frame.
        (5, {"video_start": 0.4}, None, [4]),
    ],
)
def test_short_clips_differ(films, num_frames, asked, theirs, ours):
    assert [shown_number(frame) for frame in seen("video", films[num_frames], **asked)] == ours
    if theirs is None:
        with pytest.raises(ValueError, match=r"interval|Invalid time range"):
            seen_video(films[num_frames], **asked)
    else:
        assert [shown_number(frame) for frame in seen_video(films[num_frames], **asked)] == theirs


@pytest.mark.parametrize(
    ("asked", "most_tokens"),
    [
        ({"fps": 30}, 16384),  # theirs end at 115,200 tokens, more than any published size was trained with
        ({"total_pixels": 100 * PIXELS_PER_TOKEN}, 100),  # min_pixels does not lift a video above its total
    ],
)
def test_the_total_of_a_film_differs(films, asked, most_tokens):
    def tokens(frames: np.ndarray) -> int:
        return frames.shape[0] // 2 * (frames.shape[1] * frames.shape[2] // PIXELS_PER_TOKEN)

    assert tokens(seen("video", films[300], **asked)) <= most_tokens
    assert tokens(seen_video(films[300], **asked)) > most_tokens


@pytest.mark.parametrize("num_frames", [1, 2, 5, 20])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"min_pixels": 4 * PIXELS_PER_TOKEN, "max_pixels": 64 * PIXELS_PER_TOKEN},
        {"resized_height": 56, "resized_width": 112},
        {"total_pixels": 4000 * PIXELS_PER_TOKEN},
    ],
)
def test_a_list_of_frames_has_the_same_grid(num_frames, asked):
    """Where the sides are multiples of 56; an odd last frame is written twice by them, and counted twice by us."""
    frames = [picture(448, 448)] * num_frames
    ours, theirs = seen("video", frames, **asked), seen_video(frames, **asked)
    assert ours.shape[1:] == theirs.shape[1:]
    assert -(-len(ours) // 2) == len(theirs) // 2


def test_frames_of_a_list_are_resized_once_here_and_twice_there():
    """First to multiples of 56, by a factor that is passed for a patch, then to the video's."""
    frames = [picture(97, 640)] * 4
    assert seen("video", frames).shape[1:3] == (840, 140)
    assert seen_video(frames).shape[1:3] == (756, 140)
