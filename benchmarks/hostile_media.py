"""Pictures and videos that cost far more than their size says, each made here in memory.

None needs more than a few kilobytes to describe. A name says what the file attacks; what a server makes of it, an
answer or an error, is not said here.
"""

import base64
import io
import struct
import zlib
from collections.abc import Callable

import av
import numpy as np
from PIL import Image

_RGBA, _GREY = 6, 0
_SIDE = 8190
"""67 megapixels: the most that a server decodes of one request."""


def png_of_nothing(width: int, height: int, colour: int = _RGBA) -> bytes:
    """Zeros: four bytes of file for a thousand of memory."""
    row = bytes(1 + width * (4 if colour == _RGBA else 1))
    packer = zlib.compressobj(1)
    pieces = [packer.compress(row * min(64, height - top)) for top in range(0, height, 64)]
    data = b"".join([*pieces, packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return _png(_chunk(b"IHDR", header), _chunk(b"IDAT", data))


def png_claim(width: int, height: int) -> bytes:
    """A header that promises pixels, and none of them."""
    return _png(_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)))


def png_text_bomb() -> bytes:
    """Text that grows to 16 MB when it is read."""
    content = _encoded(Image.new("RGB", (28, 28)), "PNG")
    return content[:33] + _chunk(b"zTXt", b"x\x00\x00" + zlib.compress(bytes(16 << 20))) + content[33:]


def icon_with_poster() -> bytes:
    """16 x 16, says the icon; the picture inside is what an icon may hold at most."""
    inner = png_of_nothing(2048, 2048)
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + inner


def gif_of_frames(num_frames: int = 2000, side: int = 600) -> bytes:
    """One frame's block again and again."""
    content = _encoded(Image.new("L", (side, side), 7), "GIF")
    start = 13 + (3 << ((content[10] & 7) + 1))
    return content[:start] + content[start:-1] * num_frames + b";"


def gif_that_grows(side: int = 6000, num_frames: int = 30) -> bytes:
    """A canvas of one pixel, then frames of millions."""
    frames = [(1, 1), *[(side, side)] * num_frames]
    colours = bytes(range(256)) * 3
    blocks = [b"," + struct.pack("<HHHHB", 0, 0, *size, 0) + b"\x08\x03\x00\x01\x04\x00" for size in frames]
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0xF7, 0, 0) + colours + b"".join(blocks) + b";"


def gif_of_a_million() -> bytes:
    """Frames of one pixel: all of them must be walked to be counted."""
    block = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x08\x01\x00\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + block * 1_000_000 + b";"


def jpeg_of_scans(num_scans: int, side: int = 4000) -> bytes:
    """A progressive picture whose last scan stands there again and again."""
    content = _encoded(Image.new("RGB", (side, side), (90, 120, 40)), "JPEG", progressive=True)
    start = content.rindex(b"\xff\xda")
    return content[:-2] + content[start:-2] * (num_scans - content.count(b"\xff\xda")) + b"\xff\xd9"


def tiff_of_tags(num_tags: int = 60_000) -> bytes:
    """Tags that nobody knows; a careless reader warns of each."""
    content = _encoded(Image.new("RGB", (8, 8)), "TIFF")
    (start,) = struct.unpack_from("<I", content, 4)
    (known,) = struct.unpack_from("<H", content, start)
    entries = content[start + 2 : start + 2 + 12 * known]
    odd = b"".join(
        struct.pack("<HHII", 1000 + number % 64_000, 2, 500, 1 << 30) for number in range(num_tags)
    )
    directory = struct.pack("<H", known + num_tags) + entries + odd + bytes(4)
    return content[:4] + struct.pack("<I", len(content)) + content[8:] + directory


def qoi_of_runs(side: int) -> bytes:
    """One byte for 62 pixels, in a format whose decoder is slow."""
    runs, rest = divmod(side * side - 1, 62)
    last = bytes([0xC0 | (rest - 1)]) if rest else b""
    header = b"qoif" + struct.pack(">IIBB", side, side, 3, 0)
    return header + b"\xfe\x07\x07\x07" + b"\xfd" * runs + last + bytes(7) + b"\x01"


def bmp_of_runs(side: int) -> bytes:
    """Run lengths in a bitmap: two bytes for 255 pixels."""
    rest = bytes([side % 255, 1]) if side % 255 else b""
    line = b"\xff\x01" * (side // 255) + rest + b"\x00\x00"
    data, palette = line * side + b"\x00\x01", bytes(1024)
    start = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + info + palette + data


def plain_ppm(side: int) -> bytes:
    """Numbers as text."""
    return f"P2 {side} {side} 255\n".encode() + b"7 " * (side * side)


def picture_of(format_: str, side: int, **options: object) -> bytes:
    """One colour, in a format that packs it well."""
    return _encoded(Image.new("RGB", (side, side), (90, 120, 40)), format_, **options)


def webp_of_frames(num_frames: int = 3000, side: int = 1000) -> bytes:
    """One frame's chunk again and again."""
    two = [Image.new("RGB", (side, side), (value, 0, 0)) for value in (1, 250)]
    content = _encoded(two[0], "WEBP", save_all=True, append_images=two[1:], lossless=True)
    start = content.index(b"ANMF")
    (length,) = struct.unpack_from("<I", content, start + 4)
    frame = content[start : start + 8 + length + length % 2]
    body = content[8:start] + frame * num_frames
    return b"RIFF" + struct.pack("<I", len(body)) + body


def film(num_frames: int, width: int, height: int) -> bytes:
    """Black frames: an hour of decoding in a few kilobytes."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "g": "250"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        black = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
        black = black.reformat(format="yuv420p")
        for number in range(num_frames):
            black.pts = number
            container.mux(stream.encode(black))
        container.mux(stream.encode())
    return file.getvalue()


def film_of_claims() -> bytes:
    """An index of 67 million samples in eight bytes."""
    content = film(10, 96, 64)
    at = content.index(b"stsz") + 8
    return content[:at] + struct.pack(">II", 1, 67_000_000) + content[at + 8 :]


def film_of_one_place(num_chunks: int = 100_000) -> bytes:
    """Chunks without number that all lie at one place of the file."""
    content = film(10, 96, 64)
    chunks = content.index(b"stco") + 8
    place = content[chunks + 4 : chunks + 8]
    (had,) = struct.unpack_from(">I", content, chunks)
    content = (
        content[:chunks]
        + struct.pack(">I", num_chunks)
        + place * num_chunks
        + content[chunks + 4 + 4 * had :]
    )
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stco"):
        at = content.index(parent) - 4
        (size,) = struct.unpack_from(">I", content, at)
        content = content[:at] + struct.pack(">I", size + 4 * (num_chunks - had)) + content[at + 4 :]
    return content


def noise(side: int, seed: int, format_: str = "JPEG") -> bytes:
    """An honest picture that nothing packs well."""
    random = np.random.default_rng(seed)
    return _encoded(Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)), format_)


PICTURES: dict[str, Callable[[], bytes]] = {
    "PNG of 67 megapixels with transparency": lambda: png_of_nothing(_SIDE, _SIDE),
    "PNG of 67 megapixels, grey": lambda: png_of_nothing(_SIDE, _SIDE, _GREY),
    "PNG of 4 megapixels with transparency": lambda: png_of_nothing(2048, 2048),
    "PNG that claims 1.6 gigapixels": lambda: png_claim(40_000, 40_000),
    "PNG whose text grows": png_text_bomb,
    "icon with a poster": icon_with_poster,
    "JPEG of a thousand scans": lambda: jpeg_of_scans(1000),
    "JPEG of a hundred scans": lambda: jpeg_of_scans(100),
    "JPEG of a hundred scans, 4 megapixels": lambda: jpeg_of_scans(100, 2000),
    "TIFF of sixty thousand tags": tiff_of_tags,
    "QOI of 67 megapixels": lambda: qoi_of_runs(_SIDE),
    "QOI of 4 megapixels": lambda: qoi_of_runs(2048),
    "BMP of runs, 4 megapixels": lambda: bmp_of_runs(2040),
    "PPM of numbers, 4 megapixels": lambda: plain_ppm(2048),
    "JPEG 2000 of 4 megapixels": lambda: noise(2000, 7, "JPEG2000"),
    "WebP of 64 megapixels": lambda: picture_of("WEBP", 8000, lossless=True, method=0),
    "AVIF of 4 megapixels": lambda: noise(1000, 9, "AVIF"),
}
"""By what is hostile about them."""
VIDEOS: dict[str, Callable[[], bytes]] = {
    "GIF of 2,000 frames": gif_of_frames,
    "GIF whose canvas grows": gif_that_grows,
    "GIF of a million frames": gif_of_a_million,
    "WebP of 3,000 frames": webp_of_frames,
    "MP4 of 67 million samples": film_of_claims,
    "MP4 of one place": film_of_one_place,
    "MP4 of 2160p": lambda: film(120, 3840, 2160),
}


def data_url(content: bytes, kind: str = "image/png") -> str:
    """As clients send it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def _png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
