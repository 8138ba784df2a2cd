"""What users send that nobody can show: each is named in one line; and what looks odd and is right."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from export.errors import UserError
from export.processor.media.decode import LocalReader
from export.processor.settings import ImageSettings, VideoSettings
from tests.support.pictures import (
    encoded,
    numbered_frame,
    picture,
    save,
    shown_number,
    video_file,
)

READER = LocalReader(ImageSettings(), VideoSettings())
FRAMES = [Image.fromarray(numbered_frame(number)) for number in range(9)]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\xff\x0a" + bytes(50), "a JPEG XL picture"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "a JPEG XL picture"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"\xef\xbb\xbf\n<svg>", "an SVG drawing"),
        (b"<!DOCTYPE html>\n<html>404 not found", "a web page"),
        (b'{"error": "not found"}', "JSON"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF", "a PostScript document"),
        (b"8BPS\0\1" + bytes(40), "a Photoshop document"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(40), "a camera's raw picture"),
        (bytes(128) + b"DICM" + bytes(20), "a DICOM image"),
        (b"PK\3\4" + bytes(40), "a ZIP archive or an office document"),
        (b"\x1f\x8b\x08" + bytes(20), "a gzip archive"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a Git LFS pointer, not the file itself",
        ),
        (encoded(picture(40, 40), "DDS"), "a DDS texture"),
        (b"", "empty"),
        (bytes(3000), "nothing but zeros"),
    ],
)
def test_what_is_no_picture_is_told_by_its_kind(content, kind):
    with pytest.raises(
        UserError, match=rf"is not a picture that can be read\. It seems to be {kind}\. Expected"
    ):
        READER.decode("image", content)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"#EXTM3U\n", "a playlist"),
        (b"ID3\4\0\0" + bytes(2000), "an MP3 recording"),
        (encoded(FRAMES[1], "JPEG"), "a JPEG picture"),
        (encoded(FRAMES[1], "TIFF", save_all=True, append_images=FRAMES[2:]), "a TIFF picture"),
        (b"", "empty"),
    ],
)
def test_what_is_no_video_is_told_by_its_kind(content, kind):
    with pytest.raises(
        UserError, match=rf"is not a video that can be read.*\. It seems to be {kind}\. Expected"
    ):
        READER.decode("video", content)


def test_a_film_sent_as_a_picture_is_told():
    with pytest.raises(UserError, match=r"It seems to be an MP4 or MOV file\. Expected"):
        READER.decode("image", video_file([numbered_frame(1)] * 4))


def test_what_is_not_known_is_not_guessed():
    with pytest.raises(
        UserError, match=r"is not a picture that can be read\. Expected one of [A-Z0-9, ]+\.$"
    ):
        READER.decode("image", b"hello")


def test_a_song_with_its_cover_has_no_video():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        sound, cover = output.add_stream("aac", rate=8000), output.add_stream("mjpeg", rate=1)
        assert isinstance(sound, av.AudioStream)
        assert isinstance(cover, av.VideoStream)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        black = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        output.mux([*cover.encode(black), *cover.encode(None)])
        output.mux([*sound.encode(silence), *sound.encode(None)])
    with pytest.raises(UserError, match="no video stream, found only: audio, a cover picture"):
        READER.decode("video", file.getvalue())


def test_the_first_page_of_a_document_is_seen_and_the_others_are_told():
    pages = encoded(FRAMES[1], "TIFF", save_all=True, append_images=FRAMES[2:])
    seen = READER.decode("image", pages)
    assert shown_number(seen.frames[0]) == 1
    (note,) = seen.notes
    assert "several pages, of which the first is seen" in note
    assert READER.decode("image", encoded(FRAMES[1], "TIFF")).notes == ()


def test_a_still_before_an_animated_png_is_none_of_its_frames():
    red = Image.new("RGB", FRAMES[0].size, "red")
    content = encoded(red, "PNG", save_all=True, append_images=FRAMES[1:], duration=500, default_image=True)
    assert [shown_number(frame) for frame in READER.decode("video", content).frames] == list(range(1, 9))
    assert READER.decode("image", content).frames[0][0, 0].tolist() == [
        255,
        0,
        0,
    ]  # what a viewer of stills shows


@pytest.mark.parametrize("format_", ["PNG", "WEBP"])
def test_all_frames_of_an_animated_picture_are_seen_as_a_film_and_the_first_as_a_picture(format_):
    options = {"lossless": True} if format_ == "WEBP" else {}
    content = encoded(FRAMES[1], format_, save_all=True, append_images=FRAMES[2:], duration=500, **options)
    assert [shown_number(frame) for frame in READER.decode("video", content).frames] == list(range(1, 9))
    assert shown_number(READER.decode("image", content).frames[0]) == 1


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "TIFF", "AVIF", "JPEG"])
def test_the_way_up_is_followed_in_every_format(format_):
    turned = Image.Exif()
    turned[0x0112] = 6
    assert READER.decode("image", encoded(picture(90, 60), format_, exif=turned)).frames[0].shape[:2] == (
        84,
        56,
    )


def test_a_name_of_several_lines_stays_one_line(tmp_path: Path):
    strange = tmp_path / "a\nb\x1b[31m 'c'.png"
    assert shown_number(READER.decode("image", save(strange, encoded(FRAMES[5], "PNG"))).frames[0]) == 5
    save(strange, b"hello")
    for path in (strange, tmp_path / "no\nsuch.png"):
        with pytest.raises(UserError) as caught:
            READER.decode("image", path)
        assert "\n" not in str(caught.value)
        assert "\x1b" not in str(caught.value)


def test_a_line_of_ten_thousand_pixels_is_refused_and_two_hundred_to_one_is_seen():
    with pytest.raises(UserError, match="10000 x 1 pixels: one side is more than 200 times the other"):
        READER.decode("image", encoded(Image.new("RGB", (10_000, 1)), "PNG"))
    assert READER.decode("image", Image.new("RGB", (2000, 10))).frames[0].shape[:2] == (28, 812)
