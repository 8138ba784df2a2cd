import io
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from export.processor.settings import VideoSettings
from export.processor.video.container import ContainerFrames
from export.processor.video.sampling import read_video
from export.processor.video.timeline import regular_rate, sample_by_time, sample_frames
from tests.support.pictures import encoded, numbered_frame, shown_number

SETTINGS = VideoSettings()
MS = Fraction(1, 1000)


def film(times, format_="matroska", codec="libx264", rate=30, numbers=None, **options):
    """Frame i, which shows its number, stands from times[i]."""
    file = io.BytesIO()
    with av.open(file, "w", format=format_, options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 168, 112, "yuv420p"
        stream.codec_context.time_base = MS
        for i, time in zip(numbers or range(len(times)), times, strict=True):
            frame = av.VideoFrame.from_ndarray(numbered_frame(i), format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), MS
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


RECORDING = [i / 30 for i in range(90)] + [3.0 + i for i in range(20)]
SLIDES = [60.0 * i for i in range(12)]
LATE = [3600.0 + i / 10 for i in range(50)]


@pytest.mark.parametrize(
    ("format_", "codec"),
    [
        ("matroska", "libx264"),
        ("webm", "libvpx-vp9"),
        ("mp4", "libx264"),
        ("mpegts", "libx264"),
        ("mov", "mpeg4"),
        ("flv", "flv"),
    ],
)
def test_a_variable_rate_is_sampled_by_the_clock_in_every_container(format_, codec):
    seen = read_video(film(RECORDING, format_, codec), SETTINGS)
    found = [RECORDING[shown_number(frame)] for frame in seen.frames]
    # Two a second while there are as many, then each frame once.
    assert found == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, *[float(second) for second in range(3, 23)]]
    assert seen.seconds == pytest.approx(found, abs=0.05)


def test_a_frame_a_minute_is_seen_whole():
    seen = read_video(film(SLIDES), SETTINGS)
    assert [shown_number(frame) for frame in seen.frames] == list(range(12))
    assert seen.seconds == pytest.approx(SLIDES)


def test_seconds_count_from_the_first_frame_wherever_the_clock_begins():
    seen = read_video(film(LATE), SETTINGS)
    assert [shown_number(frame) for frame in seen.frames] == list(range(0, 50, 5))
    assert seen.seconds == pytest.approx([0.5 * i for i in range(10)])


def test_a_rate_that_the_file_declares_and_does_not_keep_is_not_believed():
    content = bytearray(film([i / 10 for i in range(100)]))  # declared: 30 a second
    assert len(read_video(bytes(content), SETTINGS).frames) == 20
    at = content.find(b"\x23\xe3\x83")  # DefaultDuration, which browsers' recordings lack
    length = content[at + 3] & 0x7F
    content[at : at + 4 + length] = bytes([0xEC, 0x80 | (2 + length)]) + bytes(2 + length)
    assert len(read_video(bytes(content), SETTINGS).frames) == 20


def test_an_animation_is_sampled_by_its_delays():
    images = [Image.fromarray(numbered_frame(i)) for i in range(40)]
    delays = [50] * 20 + [1000] * 20  # one second, then twenty
    content = encoded(
        images[0], "WEBP", save_all=True, append_images=images[1:], duration=delays, lossless=True
    )
    seen = read_video(content, SETTINGS)
    assert [shown_number(frame) for frame in seen.frames] == [0, 10, *range(20, 40)]
    assert seen.seconds == pytest.approx([0, 0.5, *range(1, 21)])


def test_an_animated_avif_is_a_video():
    images = [Image.fromarray(numbered_frame(i)) for i in range(20)]
    content = encoded(images[0], "AVIF", save_all=True, append_images=images[1:], duration=500, quality=90)
    seen = read_video(content, SETTINGS)
    assert [shown_number(frame) for frame in seen.frames] == list(range(20))


def test_joined_recordings_are_seen_to_the_end():
    first = film([i / 25 for i in range(75)], "mpegts", rate=25)
    second = film([i / 25 for i in range(75)], "mpegts", rate=25, numbers=range(75, 150))
    found = [shown_number(frame) for frame in read_video(first + second, SETTINGS).frames]
    assert found == [i * 150 // 12 for i in range(12)]


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=200), st.floats(0.001, 100))
def test_samples_by_time_are_ascending_distinct_and_within_bounds(gaps, last):
    starts = np.cumsum([0.0, *gaps]).tolist()
    chosen = sample_by_time(starts, starts[-1] + last, SETTINGS)
    assert chosen == sorted(set(chosen))
    assert chosen[0] == 0
    assert chosen[-1] < len(starts)
    assert min(SETTINGS.min_frames, len(starts)) <= len(chosen) <= SETTINGS.max_frames


@given(st.integers(4, 3000), st.sampled_from([4, 10, 25, 30, 60]))
def test_a_regular_film_is_sampled_by_time_as_by_number_up_to_one_frame(num_frames, fps):
    by_number = sample_frames(num_frames, fps, SETTINGS)
    by_time = sample_by_time([i / fps for i in range(num_frames)], num_frames / fps, SETTINGS)
    assert len(by_number) == len(by_time)
    assert all(abs(a - b) <= 1 for a, b in zip(by_number, by_time, strict=True))


def test_no_gap_is_left_that_a_frame_could_fill():
    starts = [0.0, 0.1, 0.2, 30.0, 30.1, 60.0, 60.1, 60.2, 60.3]
    chosen = [starts[i] for i in sample_by_time(starts, 90.0, SETTINGS)]
    assert {0.2, 30.1, 60.3} <= set(chosen)
    assert max(b - a for a, b in pairwise(chosen)) < 31


@pytest.mark.parametrize(
    ("ticks", "declared", "expected"),
    [
        ([0, 33, 67, 100, 133], 30.0, 30.0),  # milliseconds of 30 a second
        ([0, 100, 200, 300], 30.0, 10.0),  # the header lies
        ([0, 100, 200, 300], None, 10.0),
        ([0, 100, 200, 1200], 10.0, None),
        ([0], 25.0, 25.0),
        ([], 25.0, 25.0),
    ],
)
def test_a_rate_is_regular_where_frames_stand_near_their_places(ticks, declared, expected):
    found = regular_rate(ticks, MS, declared)
    assert found == (None if expected is None else pytest.approx(expected))


def test_a_regular_film_keeps_the_exact_rate_of_its_header():
    content = film([i * 1001 / 24000 for i in range(240)], rate=Fraction(24000, 1001))
    frames = ContainerFrames(content, "cinema")
    assert frames.starts_s is None
    assert frames.fps == pytest.approx(24000 / 1001, rel=1e-9)
