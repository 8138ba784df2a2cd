"""What can be seen of a JPEG that lacks its end, as interrupted uploads and some cameras leave it."""

import io

import numpy as np
from PIL import Image

_END = b"\xff\xd9"
_SCAN = b"\xff\xda"
_JPEG = ("JPEG",)
_OTHER_BYTES = bytes(37 * i % 251 for i in range(4096))  # coded data without a marker


def mended_jpeg(content: bytes) -> tuple[Image.Image, float, str] | None:
    """Decode a JPEG as far as it goes.

    Returns:
        The picture, which share of its rows is missing (grey, or the last colour), and a clause that says so; None
        where it is no JPEG or nothing can be decoded.
    """
    if not content.startswith(b"\xff\xd8"):
        return None
    image = _decoded(content + _END)
    if image is None:
        return None
    if image.info.get("progressive"):
        # Every scan refines the whole picture: of a second one on, all of it is there, less sharp.
        num_scans = content.count(_SCAN)
        return (image, 0.0, "its last details are missing") if num_scans > 1 else None
    lost = 1 - _num_rows(content, image) / image.height
    return image, lost, f"{lost:.0%} of its rows are missing" if lost > 0.005 else "its end is missing"


def _decoded(content: bytes) -> Image.Image | None:
    try:
        image = Image.open(io.BytesIO(content), formats=_JPEG)
        image.load()
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - Pillow's decoders raise nearly any type
        return None
    return image


def _num_rows(content: bytes, mended: Image.Image) -> int:
    """Rows that were really in the file: only what is not would come out otherwise with other bytes behind its end."""
    other = _decoded(content + _OTHER_BYTES + _END)
    if other is None:
        return 0
    differs = (np.asarray(other) != np.asarray(mended)).reshape(mended.height, -1).any(axis=1)
    return int(np.argmax(differs)) if differs.any() else mended.height
