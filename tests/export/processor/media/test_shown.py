import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from export.processor.media.shown import shown_image
from export.processor.settings import VideoSettings
from export.processor.video.container import ContainerFrames
from export.processor.video.sampling import load_video
from tests.support.pictures import numbered_frame, shown_number, video_file

CORNERS = np.zeros((64, 96, 3), np.uint8)
CORNERS[:32, :48] = 255  # bright at the upper left
CORNERS[32:, :48] = 128  # grey at the lower left

MATRICES: dict[str, Any] = {
    "as it is": ((1, 0, 0, 1), lambda a: a),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "upside down mirrored": ((1, 0, 0, -1), np.flipud),
    "half a turn": ((-1, 0, 0, -1), lambda a: np.rot90(a, 2)),
    "a quarter clockwise": ((0, 1, -1, 0), lambda a: np.rot90(a, -1)),
    "a quarter back": ((0, -1, 1, 0), np.rot90),
    "transposed": ((0, 1, 1, 0), lambda a: a.swapaxes(0, 1)),
    "transposed the other way": ((0, -1, -1, 0), lambda a: np.rot90(a.swapaxes(0, 1), 2)),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_the_whole_display_matrix_is_followed(kind):
    matrix, expected = MATRICES[kind]
    content = video_file([CORNERS] * 5)
    numbers = [matrix[0], matrix[1], 0, matrix[2], matrix[3], 0, 0, 0]
    written = b"".join((number * 65536 & 0xFFFFFFFF).to_bytes(4) for number in numbers) + (1 << 30).to_bytes(
        4
    )
    identity = b"".join((n << 16).to_bytes(4) for n in (1, 0, 0, 0, 1, 0, 0, 0)) + (1 << 30).to_bytes(4)
    at = content.index(identity, content.index(b"tkhd"))
    content = content[:at] + written + content[at + 36 :]
    shown = np.asarray(next(ContainerFrames(content, "phone").read([0])))
    assert shown.shape == expected(CORNERS).shape
    assert np.abs(shown.astype(int) - expected(CORNERS)).mean() < 6


def written(codec, pix_fmt, arrays, input_format="rgb24", format_="mov", **attributes):
    file = io.BytesIO()
    with av.open(file, "w", format=format_) as container:
        stream = container.add_stream(codec, rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = arrays[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for name, value in attributes.items():
            setattr(stream.codec_context, name, value)
        for i, array in enumerate(arrays):
            frame = av.VideoFrame.from_ndarray(array, format=input_format).reformat(format=pix_fmt)
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "format_"),
    [("qtrle", "argb", "mov"), ("png", "rgba", "mov"), ("ffv1", "bgra", "matroska")],
)
def test_what_is_transparent_stands_on_white(codec, pix_fmt, format_):
    picture = np.zeros((64, 96, 4), np.uint8)
    picture[20:40, 20:60, 3] = 255  # a black bar
    content = written(codec, pix_fmt, [picture] * 4, "rgba", format_)
    shown = np.asarray(next(ContainerFrames(content, "title").read([0])))
    assert shown[30, 40].max() < 10
    assert shown[5, 5].min() > 245


@pytest.mark.parametrize(
    ("ratio", "size"), [(Fraction(2), (192, 64)), (Fraction(1, 2), (96, 128)), (Fraction(1), (96, 64))]
)
def test_pixels_that_are_not_square_are_shown_in_their_shape(ratio, size):
    content = written("libx264", "yuv420p", [CORNERS] * 4, format_="mp4", sample_aspect_ratio=ratio)
    assert next(ContainerFrames(content, "dvd").read([0])).size == size


def test_an_absurd_ratio_is_passed_over():
    frame = av.VideoFrame.from_ndarray(CORNERS, format="rgb24")
    for ratio in (Fraction(1000), Fraction(1, 1000), Fraction(0), None):
        assert shown_image(frame, ratio).size == (96, 64)


def test_a_stream_that_changes_its_size_is_seen_at_one():
    tenth = Fraction(1, 10)
    file = io.BytesIO()

    def packets(width, height, numbers):
        encoder = av.CodecContext.create("libvpx", "w")
        assert isinstance(encoder, av.VideoCodecContext)
        encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, "yuv420p", tenth
        for i in numbers:
            picture = np.asarray(Image.fromarray(numbered_frame(i)).resize((width, height)))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = i, tenth
            yield from encoder.encode(frame)
        yield from encoder.encode(None)

    with av.open(file, "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 168, 112, "yuv420p"
        for packet in [*packets(168, 112, range(30)), *packets(336, 224, range(30, 60))]:
            packet.stream = stream
            container.mux(packet)
    frames = load_video(file.getvalue(), VideoSettings())
    assert len({frame.shape for frame in frames}) == 1
    assert [shown_number(frame) for frame in frames] == list(range(0, 60, 5))


def test_the_default_track_is_shown_and_not_the_first_one():
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        streams = []
        for number in range(2):
            stream = container.add_stream("libx264", rate=10)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = 168, 112, "yuv420p"
            stream.disposition = av.stream.Disposition.default if number == 1 else av.stream.Disposition(0)
            streams.append(stream)
        for i in range(5):
            for number, stream in enumerate(streams):
                frame = av.VideoFrame.from_ndarray(numbered_frame(1000 * number + i), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 10)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    assert shown_number(next(ContainerFrames(file.getvalue(), "two angles").read([0]))) == 1000


def test_brightness_of_hdr_is_that_of_a_screen():
    # 58 % of the PQ code is the 203 nits of white on a screen (ITU-R BT.2408); 0 is black, 75 % is 1,000 nits.
    levels = np.array([0.0, 0.38, 0.58, 0.75, 1.0])
    grey = np.rint(np.repeat(np.repeat(levels[None, :], 64, 0), 32, 1) * 255).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(np.repeat(grey[..., None], 3, 2), format="rgb24")
    frame.color_trc, frame.color_primaries = 16, 9
    shown = np.asarray(shown_image(frame, None))[32, 16::32, 0].astype(int)
    assert shown[0] == 0
    assert 60 < shown[1] < 130  # a mid grey of the same scene
    assert 215 < shown[2] < 250
    assert shown[3] >= 250
    assert list(shown) == sorted(shown)
    plain = av.VideoFrame.from_ndarray(np.repeat(grey[..., None], 3, 2), format="rgb24")
    assert np.array_equal(np.asarray(shown_image(plain, None))[..., 0], grey)


def test_both_kinds_of_hdr_show_one_scene_alike():
    """The same light, written in PQ and in HLG (ITU-R BT.2100), is the same on the screen."""
    nits = np.array([1.0, 10, 50, 100, 203, 600])
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    powers = (nits / 10_000) ** m1
    pq = ((c1 + c2 * powers) / (1 + c3 * powers)) ** m2
    scene = (nits / 1000) ** (1 / 1.2)
    hlg = np.where(
        scene <= 1 / 12,
        np.sqrt(3 * scene),
        0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073,
    )
    shown = []
    for codes, transfer in ((pq, 16), (hlg, 18)):
        grey = np.rint(np.repeat(np.repeat(codes[None, :], 64, 0), 32, 1) * 255).astype(np.uint8)
        frame = av.VideoFrame.from_ndarray(np.repeat(grey[..., None], 3, 2), format="rgb24")
        frame.color_trc, frame.color_primaries = transfer, 9
        shown.append(np.asarray(shown_image(frame, None))[32, 16::32, 0].astype(int))
    assert np.abs(shown[0] - shown[1]).max() <= 6
    assert 215 < shown[1][4] < 250
    assert list(shown[1]) == sorted(shown[1])


def test_of_interlaced_frames_one_field_is_shown_at_full_height():
    woven = np.zeros((128, 96, 3), np.uint8)
    woven[::2] = 200  # the fields of something that moved
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        options = {"x264-params": "interlaced=1:tff=1:qp=1", "preset": "ultrafast"}
        stream = container.add_stream("libx264", rate=25, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 96, 128, "yuv420p"
        for i in range(6):
            frame = av.VideoFrame.from_ndarray(woven, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    shown = np.asarray(next(ContainerFrames(file.getvalue(), "broadcast").read([0])))
    assert shown.shape == (128, 96, 3)
    assert np.ptp(shown[10:-10].astype(int)) < 30  # no comb
    assert abs(shown[10:-10].mean() - 200) < 15
