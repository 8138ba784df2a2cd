import io
import struct

import av
import numpy as np
import pytest

from export.errors import UserError
from export.processor.media.limits import MediaLimits
from export.processor.video.container import ContainerFrames
from export.processor.video.mp4_tables import check_tables
from tests.support.pictures import moving_frames, silent_audio_file, video_file


def check(content):
    check_tables(io.BytesIO(content), "sent")


def box(kind, *content, size=None):
    body = b"".join(content)
    return struct.pack(">I4s", size or 8 + len(body), kind) + body


def table(kind, *numbers, flags=0):
    return box(kind, struct.pack(f">{len(numbers) + 1}I", flags, *numbers))


def movie(*tables):
    return box(b"ftyp", b"isom\0\0\0\0") + box(b"moov", box(b"trak", *tables)) + box(b"mdat", bytes(100))


@pytest.fixture(scope="module")
def film():
    return video_file(moving_frames(30))


def with_constant_sizes(film, size, count):
    at = film.index(b"stsz") + 8
    return film[:at] + struct.pack(">II", size, count) + film[at + 8 :]


def test_a_table_that_says_sixty_million_samples_in_eight_bytes_is_refused_before_an_index_is_built(film):
    with pytest.raises(UserError, match="announces 67000000 samples in"):
        ContainerFrames(with_constant_sizes(film, 1, 67_000_000), "sent")


BOMBS = {
    "samples of one size": table(b"stsz", 1, 60_000_000),
    "samples of no size that a table holds": table(b"stsz", 0, 60_000_000),
    "half-byte samples": table(b"stz2", 4, 60_000_000),
    "a fragment's samples": table(b"trun", 60_000_000),
    "a fragment's samples with sizes": table(b"trun", 60_000_000, flags=0x200),
    "chunks of a billion": table(b"stco", 1, 8) + table(b"stsc", 1, 1, 1 << 30, 1),
    "many chunks of many": table(b"stco", 900, *range(900)) + table(b"stsc", 1, 1, 100_000, 1),
    "edits without end": table(b"elst", 1 << 28),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_what_announces_far_more_than_the_file_holds_is_refused(kind):
    with pytest.raises(UserError, match=r"announces .* in \d+ bytes"):
        check(movie(BOMBS[kind]))


@pytest.mark.parametrize(
    "place",
    [
        lambda bomb: box(b"moov", box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", bomb))))),
        lambda bomb: box(b"free", box(b"moov", bomb)),
        lambda bomb: box(b"moov", box(b"trak", box(b"stsd", bytes(94), bomb))),
        lambda bomb: box(b"moof", box(b"traf", bomb)),
        lambda bomb: box(b"moov", bytes(2**20 - 8 - 10), bomb),  # over the seam of two reads
        lambda bomb: box(b"moov", bomb, size=0x7FFFFFFF),
        lambda bomb: struct.pack(">I4sQ", 1, b"moov", 16 + len(bomb)) + bomb,
    ],
)
def test_a_table_is_found_wherever_it_stands(place):
    with pytest.raises(UserError, match="announces 60000000 samples"):
        check(box(b"ftyp", b"isom\0\0\0\0") + place(table(b"stsz", 1, 60_000_000)))


def test_a_table_with_a_long_length_is_read_where_its_content_is():
    long = struct.pack(">I4sQIII", 1, b"stsz", 28, 0, 1, 60_000_000)
    with pytest.raises(UserError, match="announces 60000000 samples"):
        check(movie(long))


def test_many_edits_of_many_samples_are_refused_and_a_few_are_not():
    samples = table(b"stsz", 0, 100_000, *([0] * 100_000))
    check(movie(samples, table(b"elst", 20, *([0] * 60))))
    with pytest.raises(UserError, match="2000 edits of 100000 samples"):
        check(movie(samples, table(b"elst", 2000, *([0] * 6000))))


def test_an_index_that_is_compressed_is_refused_by_name():
    with pytest.raises(UserError, match="compressed index"):
        check(movie(box(b"cmov", bytes(20))))


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}])
def test_an_honest_film_passes_whole_and_cut_off(film, options):
    content = video_file(moving_frames(100), **options)
    for kept in (1.0, 0.9, 0.5, 0.2):
        check(content[: int(len(content) * kept)])


def test_hours_of_sound_beside_a_film_pass():
    # PCM has a "sample" for each instant: 48,000 a second, which FFmpeg's index holds by the chunk.
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as container:
        stream = container.add_stream("pcm_s16le", rate=48000)
        assert isinstance(stream, av.AudioStream)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 48000 * 100), np.int16), format="s16", layout="mono")
        sound.sample_rate = 48000
        container.mux(stream.encode(sound))
    content = file.getvalue()
    assert content.count(b"soun") == 1
    check(content)


@pytest.mark.parametrize("num_lost", range(1, 13))
def test_a_table_that_is_cut_off_inside_of_an_entry_is_refused(num_lost):
    runs = box(b"ftyp", b"isom\0\0\0\0") + box(b"moov", box(b"trak", table(b"stsc", 2, 1, 1, 1, 2, 1, 1)))
    check(runs)
    with pytest.raises(UserError, match="announces a table of 2 entries"):
        check(runs[:-num_lost])


def test_other_kinds_of_files_are_not_looked_into():
    check(silent_audio_file())
    check(b"RIFF" + movie(BOMBS["samples of one size"]))
    check(b"")


def test_packets_that_lie_over_each_other_are_refused(film):
    """Thirty chunks at one place, each a fifth of the film: every one of them is there."""
    sizes = film.index(b"stsz") + 16
    content = film[:sizes] + struct.pack(">30I", *[len(film) // 5] * 30) + film[sizes + 120 :]
    runs = content.index(b"stsc") + 12
    content = content[:runs] + struct.pack(">II", 1, 1) + content[runs + 8 :]
    chunks = content.index(b"stco") + 8
    place = content[chunks + 4 : chunks + 8]
    content = content[:chunks] + struct.pack(">I", 30) + place * 30 + content[chunks + 8 :]
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stco"):
        at = content.index(parent) - 4
        (size,) = struct.unpack_from(">I", content, at)
        content = content[:at] + struct.pack(">I", size + 29 * 4) + content[at + 4 :]
    with pytest.raises(UserError, match="lie over each other"):
        ContainerFrames(content, "sent")


def test_frames_are_counted_up_to_the_limit(film):
    assert ContainerFrames(film, "sent", MediaLimits(max_video_frames=30)).num_frames == 30
    with pytest.raises(UserError, match="more than 29 frames"):
        ContainerFrames(film, "sent", MediaLimits(max_video_frames=29))


def test_a_codec_that_is_not_on_the_list_is_refused():
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("cinepak", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "rgb24"
        for frame in moving_frames(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with pytest.raises(UserError, match=r"no decoder here .*cinepak"):
        ContainerFrames(file.getvalue(), "old game")
