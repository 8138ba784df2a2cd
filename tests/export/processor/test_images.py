import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from export.errors import UserError
from export.processor.images import load_image
from export.processor.media.limits import MAX_PICTURE_PIXELS, MediaLimits
from tests.support.pictures import encoded, picture, rotated_jpeg, save, transparent_png


def png_claiming(width, height):
    """A few bytes of PNG whose header promises a huge picture."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


def test_path_bytes_array_and_pillow_image_give_the_same_pixels(tmp_path):
    image = picture(50, 40)
    content = encoded(image, "PNG")
    expected = np.asarray(image)
    path = save(tmp_path / "a.png", content)
    for source in (path, str(path), f"file://{path}", content, image, expected):
        assert np.array_equal(np.asarray(load_image(source)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_s_rotation_is_applied(orientation):
    image = load_image(rotated_jpeg(orientation, width=90, height=60))
    assert image.size == ((60, 90) if orientation >= 5 else (90, 60))
    stored = Image.open(io.BytesIO(rotated_jpeg(orientation)))
    turn = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}[orientation]
    expected = stored if turn is None else stored.transpose(Image.Transpose(turn))
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_transparent_pixels_are_laid_over_white():
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (200, 100, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 51))
    assert np.asarray(load_image(image)).tolist() == [[[255, 255, 255], [200, 100, 0], [204, 204, 204]]]


def test_a_transparent_colour_named_by_the_file_becomes_white():
    pixels = np.asarray(load_image(transparent_png("RGB")))
    assert pixels[5, 5].tolist() == [255, 255, 255]


def test_the_mode_that_pillow_cannot_convert_follows_its_unpremultiplied_twin():
    image = picture(20, 20, "LA")
    premultiplied = image.convert("La")
    expected = np.asarray(load_image(premultiplied.convert("LA")))
    assert np.array_equal(np.asarray(load_image(premultiplied)), expected)


def test_an_animated_picture_gives_its_first_frame():
    frames = [picture(20, 20, seed=seed) for seed in range(3)]
    content = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(np.asarray(load_image(content)), np.asarray(frames[0]))


def test_the_callers_image_is_left_as_it_was():
    image = Image.open(io.BytesIO(rotated_jpeg(6)))
    before = image.size
    load_image(image)
    assert image.size == before
    assert image.getexif()[0x0112] == 6


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("kept", [0.95, 0.5, 0.1])
def test_a_truncated_file_is_one_clear_error(tmp_path, format_, kept):
    content = encoded(picture(200, 150), format_)
    path = save(tmp_path / "cut.bin", content[: int(len(content) * kept)])
    with pytest.raises(UserError, match=r"cut\.bin") as caught:
        load_image(path, MediaLimits(strict=True))
    assert "\n" not in str(caught.value)
    if format_ != "JPEG" or kept < 0.8:
        with pytest.raises(UserError, match=r"cut\.bin"):
            load_image(path)


def test_a_corrupt_file_is_one_clear_error():
    content = bytearray(encoded(picture(200, 150), "PNG"))
    content[200:400] = bytes(200)
    with pytest.raises(UserError, match="truncated or corrupt"):
        load_image(bytes(content))


@pytest.mark.parametrize("size", [(12000, 12000), (60000, 60000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_by_its_header(size):
    with pytest.raises(UserError, match=f"at most {MAX_PICTURE_PIXELS}"):
        load_image(png_claiming(*size))


def test_a_large_picture_below_the_limit_is_read_without_a_warning(recwarn):
    image = load_image(encoded(Image.new("L", (10000, 10000)), "PNG"))
    assert image.size == (10000, 10000)
    assert not list(recwarn)


def test_a_pillow_image_above_the_limit_is_refused():
    with pytest.raises(UserError, match="decompression bombs"):
        load_image(Image.new("1", (20000, 20000)))


def test_formats_that_run_or_name_other_things_are_not_tried():
    with pytest.raises(UserError, match="not a picture that can be read"):
        load_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_what_is_no_picture_is_refused(content):
    with pytest.raises(UserError):
        load_image(content)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/file.png", "found nothing"),
        ("/", "found a folder"),
        ("/dev/zero", "no regular file"),
        ("https://example.org/a.png", "web address"),
        ("data:image/png;base64,AAAA", "web address"),
        ("a\0b", "Expected a file"),
        ("x" * 5000, "Expected a file"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (np.zeros((4, 4), np.uint8), r"found uint8 \[4, 4\]"),
        (np.zeros((4, 4, 3), np.float32), r"found float32 \[4, 4, 3\]"),
        (None, "NoneType"),
        (42, "int"),
    ],
)
def test_what_cannot_be_a_picture_is_refused_with_a_reason(source, message):
    with pytest.raises(UserError, match=message):
        load_image(source)
