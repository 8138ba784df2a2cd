"""What a file is that is no picture or video of ours, so that its sender learns more than that it cannot be read."""

import re

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"v/1\x01", "an OpenEXR picture"),
    (0, b"#?RADIANCE", "a Radiance picture"),
    (0, b"DDS ", "a DDS texture"),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
    (8, b"CR\x02\0", "a camera's raw picture"),
    (128, b"DICM", "a DICOM image"),
    (0, b"PK\x03\x04", "a ZIP archive or an office document"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"#EXTM3U", "a playlist"),
    (0, b"ID3", "an MP3 recording"),
    (0, b"OggS", "an Ogg recording or video"),
    (4, b"ftyp", "an MP4 or MOV file"),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (8, b"AVI ", "an AVI video"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"II*\0", "a TIFF picture"),
    (0, b"MM\0*", "a TIFF picture"),
    (0, b"BM", "a BMP picture"),
    (0, b"{", "JSON"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)
_SVG = re.compile(rb"<svg[\s>]", re.IGNORECASE)
_HTML = re.compile(rb"<(!doctype html|html|head|body)[\s>]", re.IGNORECASE)
HEAD_BYTES = 1024
"""That tell the kind."""


def kind_of_file(head: bytes) -> str | None:
    """What a file seems to be by its first bytes, with its article; None: nothing that is known here."""
    if not head.strip(b"\0"):
        return "nothing but zeros" if head else "empty"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if _SVG.search(text):
        return "an SVG drawing"
    if _HTML.search(text):
        return "a web page"
    at_start = (kind for place, magic, kind in _MAGIC if head[place:].startswith(magic))
    return next(at_start, None)


def seems(head: bytes) -> str:
    """A sentence for an error; empty where nothing is known."""
    kind = kind_of_file(head[:HEAD_BYTES])
    return f" It seems to be {kind}." if kind else ""
