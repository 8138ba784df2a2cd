"""Upright RGB pixels from a picture that someone sent.

The picture is hostile until decoded: only plain raster formats are tried (no format that starts another program or
names other files), its size is checked before any pixel is decoded, and whatever a decoder throws at broken input
becomes one `UserError`.
"""

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from export.errors import UserError
from export.processor.media.broken_jpeg import mended_jpeg
from export.processor.media.deep_grey import DEEP_MODES, grey_from_deep
from export.processor.media.file_kinds import HEAD_BYTES, seems
from export.processor.media.heif import heif_image, is_heif, read_plan
from export.processor.media.image_headers import HEADER_KINDS, check_headers
from export.processor.media.limits import DEFAULT_LIMITS, MAX_LOST_SHARE, MAX_PICTURE_PIXELS, MediaLimits
from export.wording import plain_line

ImageSource = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]

_STRIP_PIXELS = 1 << 22

PICTURE_FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP",
)  # fmt: skip


def load_image(source: ImageSource, limits: MediaLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode one picture: a path, encoded bytes, a Pillow image of any mode, or a uint8 array [H, W, 3].

    The EXIF rotation is applied. Transparent pixels are laid over white, as Transformers 5 does. An animated picture
    gives its first frame. Of a JPEG that lacks its end what is there is taken.

    Returns:
        An RGB image. It may be the very object that was passed in, so treat it as read-only.

    Raises:
        UserError: no such file, not a picture, truncated or corrupt, or larger than `MAX_PICTURE_PIXELS`.
    """
    return read_image(source, limits)[0]


def read_image(
    source: ImageSource, limits: MediaLimits = DEFAULT_LIMITS
) -> tuple[Image.Image, tuple[str, ...]]:
    """As `load_image`, with sentences that say what is missing."""
    if isinstance(source, np.ndarray):
        return _image_from_array(source), ()
    with open_image(source) as image:
        notes = _page_notes(image, source)
        try:
            with decoding(source):
                return rgb_from_image(upright(image)), notes
        except UserError:
            mended = None if limits.strict or image.format != "JPEG" else mended_jpeg(_content(source))
            if mended is None:
                raise
    picture, lost_share, clause = mended
    if lost_share > MAX_LOST_SHARE:
        raise UserError(
            f"{describe(source)} is truncated or corrupt: {clause}; at most {MAX_LOST_SHARE:.0%} may be lost.",
            "Send the file again.",
        )
    with decoding(source):
        return rgb_from_image(upright(picture)), (f"{describe(source)}: {clause}.",)


def _page_notes(image: Image.Image, source: ImageSource) -> tuple[str, ...]:
    """Of a TIFF that holds a document: its other pages are no frames of a film, and not seen."""
    if image.format != "TIFF" or not getattr(image, "is_animated", False):
        return ()
    note = (
        f"{describe(source)} has several pages, of which the first is seen. Send the others as pictures, too."
    )
    return (note,)


def image_size(source: ImageSource) -> tuple[int, int]:
    """Width and height as a picture's header says, without decoding it.

    Raises:
        UserError: as `load_image`, as far as the header shows it.
    """
    if isinstance(source, np.ndarray):
        return _image_from_array(source).size
    if not isinstance(source, Image.Image) and is_heif(_head(source)):
        return read_plan(_content(source), describe(source)).size
    with open_image(source) as image:
        return image.size


def _content(source: object) -> bytes:
    if isinstance(source, bytes):
        return source
    path = path_of_file(source)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def _head(source: object, num_bytes: int = 12) -> bytes:
    if isinstance(source, bytes):
        return source[:num_bytes]
    path = path_of_file(source)
    try:
        with path.open("rb") as file:
            return file.read(num_bytes)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


@contextmanager
def open_image(source: str | os.PathLike[str] | bytes | Image.Image) -> Iterator[Image.Image]:
    """Open a picture, checked for size but not yet decoded, and close it afterwards.

    Raises:
        UserError: no such file, not a picture, or larger than `MAX_PICTURE_PIXELS`.
    """
    if isinstance(source, Image.Image):
        _check_size(source, source)
        yield source
        return
    head = _head(source)
    if is_heif(head):
        yield heif_image(_content(source), describe(source))
        return
    file = io.BytesIO(source) if isinstance(source, bytes) else path_of_file(source)
    _silence_pillow()
    if head.startswith(HEADER_KINDS):
        check_headers(head, _content(source), describe(source))
    image = _identify(source, file)
    with image:
        _check_size(image, source)
        yield image


def _silence_pillow() -> None:
    """Keep Pillow from writing a line for each odd tag of a stranger's file, sixty thousand in a TIFF.

    Once and for Pillow's own modules: `warnings.catch_warnings` puts back what the whole process had, so that one
    request would switch the warnings of another on again. What is wrong with a file is said by an error.
    """
    module = re.compile(r"PIL\.")
    if not any(action == "ignore" and pattern == module for action, _, _, pattern, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=module.pattern)


def _identify(source: object, file: io.BytesIO | Path) -> Image.Image:
    try:
        return Image.open(file, formats=PICTURE_FORMATS)
    except Image.DecompressionBombError:
        raise UserError(_too_large(describe(source), "more than Pillow's limit")) from None
    except UnidentifiedImageError:
        raise UserError(
            f"{describe(source)} is not a picture that can be read.{seems(_head(source, HEAD_BYTES))}",
            f"Expected one of {', '.join((*PICTURE_FORMATS, 'HEIC'))}.",
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - as in `decoding`
        raise UserError(f"{describe(source)} cannot be opened as a picture: {error}") from None


@contextmanager
def decoding(source: object) -> Iterator[None]:
    """Turn whatever a decoder throws into a `UserError` that names the picture."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    # Pillow's decoders raise nearly any type on broken input: OSError, SyntaxError, struct.error, IndexError.
    except Exception as error:  # noqa: BLE001
        raise UserError(
            f"{describe(source)} is truncated or corrupt: {str(error) or type(error).__name__}.",
            "Send the file again.",
        ) from None


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF rotation; an image without one comes back as it is, not copied."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def rgb_from_image(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB, transparency laid over white.

    Bit for bit Transformers' conversion, which leaves premultiplied "RGBa" without its alpha; "La", which neither
    Pillow nor Transformers converts, goes through "LA", and grey of more than 8 bits, which they clip to white, is
    scaled.
    """
    if image.mode in DEEP_MODES:
        image = grey_from_deep(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode == "La":
        image = image.convert("LA")
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image.load()
    flat = Image.new("RGB", image.size)
    # In strips: at once, four whole copies would be in memory.
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        layers = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        white = Image.new("RGBA", layers.size, "white")
        flat.paste(Image.alpha_composite(white, layers).convert("RGB"), (0, top))
    return flat


def path_of_file(source: object) -> Path:
    """Check that a path names a regular file.

    Raises:
        UserError: it is a web address, does not exist or is no regular file.
    """
    if not isinstance(source, str | os.PathLike):
        raise UserError(f"Expected a path, bytes or a Pillow image, found {type(source).__name__}.")
    text = os.fspath(source)
    if text.startswith(("http://", "https://", "data:")):
        raise UserError(
            f"{text[:80]} is a web address.", "Download it first and give a path or the file's bytes."
        )
    path = Path(text.removeprefix("file://"))
    try:
        if path.is_file():
            return path
        found = "a folder" if path.is_dir() else "nothing" if not path.exists() else "no regular file"
    except (OSError, ValueError) as error:
        found = str(error)
    raise UserError(f"Expected a file at {plain_line(text[:200])}, found {found}. Check the path.")


def describe(source: object) -> str:
    """Name a source in an error message."""
    if isinstance(source, bytes):
        return f"The picture in {len(source)} bytes"
    if isinstance(source, str | os.PathLike):
        return plain_line(os.fspath(source))
    return f"The {type(source).__name__}"


def _check_size(image: Image.Image, source: object) -> None:
    width, height = image.size
    if width * height > MAX_PICTURE_PIXELS:
        raise UserError(_too_large(describe(source), f"{width} x {height}"))
    if width * height == 0:
        raise UserError(f"{describe(source)} has no pixels: it is {width} x {height}.")


def _too_large(name: str, size: str) -> str:
    return (
        f"{name} claims {size} pixels; at most {MAX_PICTURE_PIXELS} are decoded, "
        "because larger ones are mostly decompression bombs. Resize it first."
    )


def _image_from_array(array: NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise UserError(
            f"A picture as an array must be uint8 of shape [height, width, 3], found {array.dtype} {list(array.shape)}."
        )
    image = Image.fromarray(np.ascontiguousarray(array))
    _check_size(image, array)
    return image
