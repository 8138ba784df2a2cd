import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from export.errors import UserError
from export.processor.images import load_image
from export.processor.media.image_headers import MAX_ICON_SIDE, MAX_JPEG_SCANS
from tests.support.pictures import encoded, picture


def jpeg_of_scans(num_scans):
    """A progressive JPEG whose last scan stands there again and again."""
    content = encoded(picture(64, 48), "JPEG", progressive=True)
    start = content.rindex(b"\xff\xda")
    return content[:-2] + content[start:-2] * (num_scans - content.count(b"\xff\xda")) + b"\xff\xd9"


def test_a_jpeg_of_a_thousand_scans_is_refused():
    with pytest.raises(UserError, match=f"more than {MAX_JPEG_SCANS} scans"):
        load_image(jpeg_of_scans(1000))


def test_a_jpeg_with_as_many_scans_as_tools_make_is_read():
    assert load_image(jpeg_of_scans(40)).size == (64, 48)


def test_pictures_behind_the_first_one_do_not_count():
    content = encoded(picture(64, 48), "JPEG", progressive=True)
    assert load_image(content * 30).size == (64, 48)


def test_a_file_is_looked_into_as_bytes_are(tmp_path):
    path = tmp_path / "many.jpg"
    path.write_bytes(jpeg_of_scans(1000))
    with pytest.raises(UserError, match=r"many\.jpg is a JPEG of more than"):
        load_image(path)


def icon(inner):
    return (
        struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
    )


def png_claiming(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "inner",
    [
        png_claiming(13000, 13000),
        struct.pack("<IiiHHIIIIII", 40, 5000, 5000, 1, 32, 0, 0, 0, 0, 0, 0),
        struct.pack("<IiiHHIIIIII", 40, 5000, -5000, 1, 32, 0, 0, 0, 0, 0, 0),
        struct.pack("<IHHHH", 12, 5000, 5000, 1, 24) + bytes(40),
    ],
)
def test_an_icon_with_a_poster_inside_is_refused_before_it_is_decoded(inner):
    with pytest.raises(UserError, match=rf"icon that holds a picture of .* at most {MAX_ICON_SIDE}"):
        load_image(icon(inner))


def test_an_honest_icon_is_read():
    assert load_image(encoded(picture(200, 200), "ICO")).size == (128, 128)


def test_transparency_over_several_strips_is_what_it_is_at_once(monkeypatch):
    from export.processor import images

    image = picture(37, 53, "RGBA")
    expected = np.asarray(load_image(image))
    monkeypatch.setattr(images, "_STRIP_PIXELS", 37 * 10)
    assert np.array_equal(np.asarray(load_image(image)), expected)


def test_a_tiff_of_odd_tags_writes_nothing_to_the_log():
    content = encoded(Image.new("RGB", (8, 8)), "TIFF")
    start = struct.unpack_from("<I", content, 4)[0]
    count = struct.unpack_from("<H", content, start)[0]
    entries = content[start + 2 : start + 2 + 12 * count]
    odd = b"".join(struct.pack("<HHII", 50_000 + i, 2, 500, 1 << 30) for i in range(300))
    directory = struct.pack("<H", count + 300) + entries + odd + bytes(4)
    odd_tiff = content[:4] + struct.pack("<I", len(content)) + content[8:] + directory
    script = (
        "import sys, io; from export.processor.images import load_image; load_image(sys.stdin.buffer.read())"
    )
    ended = subprocess.run([sys.executable, "-c", script], input=odd_tiff, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    # Pillow does warn about this file.
    plain = "import sys, io; from PIL import Image; Image.open(io.BytesIO(sys.stdin.buffer.read())).load()"
    warned = subprocess.run([sys.executable, "-c", plain], input=odd_tiff, capture_output=True, check=False)
    assert b"UserWarning" in warned.stderr
