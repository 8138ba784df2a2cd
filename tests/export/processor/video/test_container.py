import io
import re
from typing import Any

import av
import numpy as np
import pytest

from export.errors import UserError
from export.processor.media.limits import MediaLimits
from export.processor.video import container as container_module
from export.processor.video.container import ContainerFrames
from tests.support.pictures import (
    moving_frames,
    numbered_frame,
    save,
    shown_number,
    silent_audio_file,
    video_file,
)

KINDS = {
    "mp4": ("mp4", "libx264"),
    "mov": ("mov", "mpeg4"),
    "matroska": ("matroska", "libx264"),
    "webm vp8": ("webm", "libvpx"),
    "webm vp9": ("webm", "libvpx-vp9"),
    "avi": ("avi", "mpeg4"),
    "mpegts": ("mpegts", "mpeg2video"),
}


def read_all(frames):
    return [np.asarray(frame) for frame in frames.read(range(frames.num_frames))]


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_counted_and_decoded_in_order(kind):
    format_, codec = KINDS[kind]
    # 25 frames a second: MPEG-2 knows no 10.
    content = video_file(moving_frames(30), fps=25, format_=format_, codec=codec)
    frames = ContainerFrames(content, "test video")
    assert frames.num_frames == 30
    assert frames.fps == 25
    brightness = [frame.mean() for frame in read_all(frames)]
    expected = [frame.mean() for frame in moving_frames(30)]
    assert np.allclose(brightness, expected, atol=6)
    # A second reading starts from the front, and skips what is not wanted.
    picked = [np.asarray(frame).mean() for frame in frames.read([3, 3, 29])]
    assert picked == [brightness[3], brightness[3], brightness[29]]


def with_rotation(content, degrees):
    """Write a rotation into the display matrix of an MP4's track header, as phones do."""
    one = (1 << 16).to_bytes(4, "big")
    minus = (0xFFFFFFFF & -(1 << 16)).to_bytes(4, "big")
    zero = bytes(4)
    last = (1 << 30).to_bytes(4, "big")
    a, b, c, d = {
        90: (zero, one, minus, zero),
        180: (minus, zero, zero, minus),
        270: (zero, minus, one, zero),
    }[degrees]
    identity = one + zero * 3 + one + zero * 3 + last
    track_header = content.index(b"tkhd")
    at = content.index(identity, track_header)
    return content[:at] + a + b + zero + c + d + zero + zero + zero + last + content[at + len(identity) :]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_phone_s_rotation_is_applied(degrees):
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:32, :48] = 255  # bright at the upper left
    content = with_rotation(video_file([frame] * 5), degrees)
    shown = np.asarray(next(ContainerFrames(content, "phone").read([0])))
    # The matrix turns clockwise.
    expected = np.rot90(frame, -degrees // 90)
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("kind", ["mp4", "matroska", "webm vp8", "webm vp9", "avi"])
@pytest.mark.parametrize("kept", [0.8, 0.6])
def test_a_video_that_ends_early_is_an_error_that_says_what_is_there(tmp_path, kind, kept):
    format_, codec = KINDS[kind]
    # The index in front, as files made for streaming have it.
    options: Any = {"movflags": "faststart"} if kind == "mp4" else {}
    content = video_file(moving_frames(100, 64, 48), format_=format_, codec=codec, **options)
    path = save(tmp_path / "cut.bin", content[: int(len(content) * kept)])
    with pytest.raises(UserError, match=r"cut\.bin ends early: .*\d") as caught:
        ContainerFrames(path, str(path))
    assert "\n" not in str(caught.value)


def test_a_video_whose_index_is_cut_off_is_an_error():
    content = video_file(moving_frames(30))
    with pytest.raises(UserError, match="its index is cut off"):
        ContainerFrames(content[: len(content) // 2], "test video")


@pytest.mark.parametrize(
    ("format_", "found"), [("avi", "its video stream is empty"), ("matroska", "ends after its header")]
)
def test_a_video_without_frames_is_an_error(format_, found):
    file = io.BytesIO()
    with av.open(file, "w", format=format_) as container:
        stream = container.add_stream("mpeg4", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    with pytest.raises(UserError, match=f"holds no frame: .*{found}"):
        ContainerFrames(file.getvalue(), "empty video")


def test_a_file_with_sound_only_is_an_error_that_says_so():
    with pytest.raises(UserError, match="no video stream, found only: audio"):
        ContainerFrames(silent_audio_file(), "song")


def scratched(format_, codec, share, num_frames=30):
    content = bytearray(video_file(moving_frames(num_frames), format_=format_, codec=codec))
    damage, length = len(content) // 2, int(len(content) * share)
    content[damage : damage + length] = np.random.default_rng(0).bytes(length)
    return bytes(content)


STRICT = MediaLimits(strict=True)
DAMAGED = pytest.mark.parametrize(("format_", "codec"), [("matroska", "ffv1"), ("mp4", "libx264")])


@DAMAGED
def test_frames_that_cannot_be_decoded_are_an_error_where_damage_is_none_to_be_taken(format_, codec):
    with pytest.raises(UserError, match=r"scratched is damaged: frame \d+ cannot be decoded"):
        read_all(ContainerFrames(scratched(format_, codec, 0.05), "scratched", STRICT))


def with_rotten_packets(content, numbers):
    """The middle of each of these packets is overwritten."""
    with av.open(io.BytesIO(content), "r") as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    rotten = bytearray(content)
    for number in numbers:
        place, size = packets[number]
        rotten[place + size // 4 : place + size - 8] = b"\xa5" * (size - size // 4 - 8)
    return bytes(rotten)


@DAMAGED
def test_a_frame_that_cannot_be_decoded_is_replaced_by_the_one_before_it_and_said(format_, codec):
    content = video_file(moving_frames(30), format_=format_, codec=codec)
    frames = ContainerFrames(with_rotten_packets(content, [14]), "scratched")
    shown = read_all(frames)
    assert len(shown) == 30
    [note] = frames.notes
    assert re.search(
        r"scratched: 1 of 30 frames cannot be decoded \(frame \d+: .*\)|frames are damaged", note
    )
    whole = [frame.mean() for frame in moving_frames(30)]
    found = [frame.mean() for frame in shown]
    assert np.allclose(found[:10] + found[-5:], whole[:10] + whole[-5:], atol=6)


def test_more_than_the_stated_share_of_damage_is_refused():
    content = with_rotten_packets(video_file(moving_frames(30), fps=25), range(10, 17))
    with pytest.raises(
        UserError, match=r"scratched is damaged: \d+% of its frames .* at most 15% may be lost"
    ):
        read_all(ContainerFrames(content, "scratched"))


@pytest.mark.parametrize("kind", ["mp4", "matroska", "webm vp8", "avi"])
def test_a_little_that_is_missing_at_the_end_is_said_and_no_error(kind):
    format_, codec = KINDS[kind]
    options: Any = {"movflags": "faststart"} if kind == "mp4" else {}
    content = video_file(moving_frames(100, 64, 48), format_=format_, codec=codec, **options)
    with av.open(io.BytesIO(content), "r") as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    cut = content[: places[88]]
    frames = ContainerFrames(cut, "clip")
    shown = [np.asarray(image) for image in frames.read(range(0, frames.num_frames, 10))]
    assert len(shown) >= 8
    assert any("are there" in note or "stop at" in note for note in frames.notes)
    with pytest.raises(UserError, match="ends early"):
        ContainerFrames(cut, "clip", STRICT)


@pytest.mark.parametrize("kind", ["matroska", "webm vp9"])
@pytest.mark.parametrize(("share", "is_taken"), [(0.03, True), (0.3, False)])
def test_a_hole_over_which_the_reader_jumps_is_said_or_refused(kind, share, is_taken):
    format_, codec = KINDS[kind]
    # A group of frames each second, so that the reader loses no more than it must.
    content = video_file(
        moving_frames(150, 320, 240), fps=10, format_=format_, codec=codec, cluster_time_limit="500"
    )
    place, length = len(content) // 2, int(len(content) * share)
    holed = content[:place] + bytes(length) + content[place + length :]
    if not is_taken:
        with pytest.raises(UserError, match=r"is damaged: \d+% of it, between its frames, cannot be read"):
            ContainerFrames(holed, "holed")
        return
    frames = ContainerFrames(holed, "holed")
    assert any("between its frames, cannot be read" in note for note in frames.notes)
    with pytest.raises(UserError, match="holed is damaged"):
        read_all(ContainerFrames(holed, "holed", STRICT))


def test_sound_between_the_frames_is_no_hole():
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        video = container.add_stream("libx264", rate=10)
        sound = container.add_stream("pcm_s16le", rate=48000)
        assert isinstance(video, av.VideoStream)
        assert isinstance(sound, av.AudioStream)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        for i, array in enumerate(moving_frames(30)):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = i
            container.mux(video.encode(frame))
            second = av.AudioFrame.from_ndarray(np.ones((1, 4800), np.int16), format="s16", layout="mono")
            second.sample_rate, second.pts = 48000, 4800 * i
            container.mux(sound.encode(second))
        container.mux(video.encode())
        container.mux(sound.encode())
    frames = ContainerFrames(file.getvalue(), "talk", STRICT)
    assert frames.num_frames == 30
    assert frames.notes == []


def test_an_untouched_film_has_no_notes_and_passes_the_strict():
    for format_, codec in KINDS.values():
        frames = ContainerFrames(
            video_file(moving_frames(30), fps=25, format_=format_, codec=codec), "x", STRICT
        )
        assert len(read_all(frames)) == 30
        assert frames.notes == []


def test_a_playlist_cannot_make_it_read_other_files(tmp_path):
    secret = save(
        tmp_path / "secret.ts", video_file(moving_frames(5), fps=25, format_="mpegts", codec="mpeg2video")
    )
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret.as_uri()}\n#EXT-X-ENDLIST\n"
    for content in (playlist, f"ffconcat version 1.0\nfile {secret}\n"):
        with pytest.raises(UserError, match="not a video that can be read"):
            ContainerFrames(content.encode(), "playlist")


def test_frames_larger_than_the_limit_are_refused(monkeypatch):
    content = video_file(moving_frames(3))
    monkeypatch.setattr(container_module, "MAX_PICTURE_PIXELS", 96 * 64 - 1)
    with pytest.raises(UserError, match="claims frames of 96 x 64"):
        ContainerFrames(content, "wall")


def film_with_frames_that_no_other_needs(codec, container="mp4", num_frames=90):
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        options = (
            {"bf": "3", "b_strategy": "0"} if codec == "libx264" else {"x265-params": "bframes=3:b-adapt=0"}
        )
        stream = output.add_stream(codec, rate=30, options={"g": "30", **options})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 168, 112, "yuv420p"
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_frames_that_nobody_sees_are_passed_over_and_the_others_are_the_same(codec, container):
    film = film_with_frames_that_no_other_needs(codec, container)
    whole = read_all(ContainerFrames(film, "film", STRICT))
    for step, first in ((15, 0), (15, 7), (10, 3), (4, 1)):
        indices = list(range(first, 90, step))
        frames = ContainerFrames(film, "film")
        shown = [np.asarray(image) for image in frames.read(indices)]
        assert all(np.array_equal(a, whole[i]) for a, i in zip(shown, indices, strict=True))
        assert frames.notes == []
        assert frames.num_decoded < 80 or step == 4


def test_damage_in_a_frame_that_nobody_sees_is_nobodys():
    film = film_with_frames_that_no_other_needs("libx264")
    with av.open(io.BytesIO(film), "r") as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    unseen = [
        number
        for number, packet in enumerate(packets)
        # nal_ref_idc behind the length (ISO/IEC 14496-10, 7.3.1)
        if number > 40
        and bytes(packet)[4] >> 5 == 0
        and 3 < (packet.pts or 0) * packet.time_base * 30 % 15 < 13
    ]
    rotten = with_rotten_packets(film, unseen)
    frames = ContainerFrames(rotten, "film")
    shown = [shown_number(image) for image in frames.read(range(0, 90, 15))]
    assert shown == list(range(0, 90, 15))
    assert frames.notes == []
    with pytest.raises(UserError, match="film is damaged"):
        read_all(ContainerFrames(rotten, "film", STRICT))


def test_an_avi_that_was_written_to_a_pipe_has_no_count_that_could_be_missed():
    content = bytearray(video_file(numbered(30), format_="avi", codec="mpeg4"))
    # Total frames of the header, and the length of its one stream: FFmpeg's own place-holder.
    for place in (content.index(b"avih") + 8 + 16, content.index(b"strh") + 8 + 32):
        content[place : place + 4] = (1 << 30).to_bytes(4, "little")
    frames = ContainerFrames(bytes(content), "piped")
    assert [shown_number(image) for image in frames.read(range(0, 30, 5))] == list(range(0, 30, 5))
    assert frames.notes == []


def test_a_part_of_a_film_may_carry_the_length_of_the_whole():
    """As mkvmerge writes it, which keeps the tag of the film from which it cuts."""
    content = video_file(numbered(60), format_="matroska")
    said = b"00:00:06.000000000"
    assert said in content
    part = content.replace(said, b"00:01:00.000000000")
    frames = ContainerFrames(part, "part", STRICT)
    assert len(read_all(frames)) == 60


def numbered(num_frames):
    return [numbered_frame(number) for number in range(num_frames)]


def test_a_turn_that_one_frame_tells_holds_until_another_is_told():
    """FFmpeg tells it with the frame that carries it alone (H.264, display orientation)."""
    content = video_file(numbered(10))
    file = io.BytesIO()
    with av.open(io.BytesIO(content), "r") as source, av.open(file, "w", format="mp4") as output:
        stream = source.streams.video[0]
        copy = output.add_stream_from_template(stream)
        mirror = av.BitStreamFilterContext("h264_metadata=display_orientation=insert:flip=horizontal", stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        for packet in [*mirror.filter(packets[0]), *packets[1:]]:
            packet.stream = copy
            output.mux(packet)
    shown = [np.asarray(image) for image in read_all(ContainerFrames(file.getvalue(), "call"))]
    assert [shown_number(frame[:, ::-1]) for frame in shown] == list(range(10))
