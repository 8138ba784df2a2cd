"""Pictures that cost far more to decode than their size says: JPEGs of a thousand scans, icons with posters inside."""

import re
import struct

from export.errors import UserError

MAX_JPEG_SCANS = 100
"""A progressive JPEG has about ten, a tool that searches for the best order some thirty; each goes over all pixels."""
MAX_ICON_SIDE = 2048
"""Pixels along a side of a picture inside an icon file, whose own directory can say 256 at most."""

_USUAL_SCANS = 10
_SLOW_FACTOR = 20
_SLOW_MAGIC = (b"P1", b"P2", b"P3", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")  # PPM as text, JPEG 2000

_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # what ends the coded data of a scan
_SCAN = b"\xff\xda"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


HEADER_KINDS = (b"\xff\xd8", b"\0\0\1\0")
"""First bytes of the kinds that `check_headers` looks into."""


def check_headers(head: bytes, content: bytes, name: str) -> None:
    """Raise UserError for a picture whose blocks ask for far more work than its size does.

    Args:
        head: the first bytes, which tell the kind.
        content: the whole file.
        name: for the message.
    """
    if head.startswith(b"\xff\xd8"):
        # Counting bytes is quick; only where a thumbnail or a second picture may have part in them are blocks walked.
        if content.count(_SCAN) > MAX_JPEG_SCANS and _num_scans(content) > MAX_JPEG_SCANS:
            raise UserError(
                f"{name} is a JPEG of more than {MAX_JPEG_SCANS} scans; each goes over the whole picture.",
                "Save it again.",
            )
    elif head.startswith(b"\0\0\1\0"):
        _check_icon(content, name)


def decoding_work(content: bytes, width: int, height: int) -> int:
    """What decoding a picture takes, as pixels of a plain PNG or JPEG that take as long.

    Rates of this library on one core: 30 million pixels a second of plain pictures, 1.5 million of JPEG 2000 and of
    numbers written as text. For the order of work alone; nothing is refused by it.
    """
    if content.startswith(b"\xff\xd8"):
        factor = min(max(1, content.count(_SCAN) - _USUAL_SCANS), MAX_JPEG_SCANS)
    else:
        factor = _SLOW_FACTOR if content.startswith(_SLOW_MAGIC) else 1
    return width * height * factor


def _num_scans(content: bytes) -> int:
    """Scans of the first picture in the file, counted up to one beyond the limit."""
    place, num_scans = 2, 0
    while num_scans <= MAX_JPEG_SCANS and (match := _MARKER.search(content, place)):
        marker = match.group(1)[0]
        place = match.end()
        if marker == 0xD9:  # the end
            break
        if marker in {0x01, 0xD8}:  # without a length
            continue
        place += int.from_bytes(content[place : place + 2])
        num_scans += marker == 0xDA
    return num_scans


def _check_icon(content: bytes, name: str) -> None:
    """Pillow decodes an icon's largest picture while it opens the file, at the size that the picture has itself."""
    (num_entries,) = struct.unpack_from("<H", content, 4)
    for entry in range(num_entries):
        at = 6 + 16 * entry + 12
        if at + 4 > len(content):
            return
        (place,) = struct.unpack_from("<I", content, at)
        inner = content[place : place + 24]
        if len(inner) < 24:
            continue
        if inner.startswith(_PNG_MAGIC):
            width, height = struct.unpack_from(">II", inner, 16)
        else:
            is_old = inner.startswith(b"\x0c\0\0\0")  # OS/2's header has numbers of two bytes
            width, height = map(abs, struct.unpack_from("<HH" if is_old else "<ii", inner, 4))
            height //= 2  # the mask stands above the picture
        if max(width, height) > MAX_ICON_SIDE:
            raise UserError(
                f"{name} is an icon that holds a picture of {width} x {height} pixels; at most {MAX_ICON_SIDE} a side "
                "are decoded.",
                "Send that picture itself.",
            )
