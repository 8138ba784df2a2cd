"""Reads the frames of a video that are pictures: a list, a folder, an animated GIF, WebP or PNG."""

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from PIL import Image

from export.errors import UserError
from export.processor.images import ImageSource, decoding, load_image, open_image, rgb_from_image
from export.processor.media.limits import DEFAULT_LIMITS, MediaLimits
from export.processor.video.animations import read_animation

PICTURE_SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".heic",
        ".heif",
        ".jfif",
        ".jpeg",
        ".jpg",
        ".jp2",
        ".png",
        ".ppm",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    }
)


class FrameSource(Protocol):
    """Frames that can be read once or more, in order, without all being in memory."""

    name: str
    num_frames: int
    """As the file announces it; more than can be decoded in rare cases (see `num_decoded`)."""
    num_decoded: int
    """How many frames the last `read` came across."""
    fps: float | None
    """Frames a second; None where frames count as sampled already, or come at times of their own."""
    starts_s: Sequence[float] | None
    """When each frame begins, where they come at no regular rate: ascending from 0."""
    end_s: float
    """When the last of them ends."""
    has_one_size: bool
    """Whether frames of different sizes are an error; a stream that changes its size on the way is none."""

    @property
    def notes(self) -> Sequence[str]:
        """What was lost, complete after `read`."""
        ...

    def read(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """Decode the frames at the ascending `indices`, each an RGB image the right way up."""
        ...


class ImageFrames:
    """A list of pictures, each one frame; files are decoded one at a time."""

    fps: float | None = None
    starts_s: Sequence[float] | None = None
    end_s = 0.0
    has_one_size = True
    notes: Sequence[str] = ()

    def __init__(self, pictures: Sequence[ImageSource], name: str) -> None:
        if not pictures:
            raise UserError(f"{name} holds no frame.", "Give at least one picture.")
        self.name = name
        self.num_frames = self.num_decoded = len(pictures)
        self._pictures = pictures

    def read(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        for index in indices:
            yield load_image(self._pictures[index])


def images_in_folder(folder: Path) -> list[Path]:
    """The pictures of a folder in the natural order of their names: frame_2 before frame_10.

    Raises:
        UserError: there is none.
    """
    try:
        files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}.") from None
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        raise UserError(
            f"{folder} holds no frame: expected pictures ({' '.join(sorted(PICTURE_SUFFIXES))}), "
            f"found {len(files)} other files."
        )
    return sorted(pictures, key=_natural_key)


def _natural_key(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


class AnimationFrames:
    """An animated GIF, WebP or PNG, whose frames carry their own durations."""

    has_one_size = False
    notes: Sequence[str] = ()

    def __init__(self, source: Path | bytes, name: str, limits: MediaLimits = DEFAULT_LIMITS) -> None:
        self.name = name
        self._source = source
        with open_image(source):
            pass  # says what is wrong with a file that is no picture at all
        animation = read_animation(source if isinstance(source, bytes) else source.read_bytes(), name, limits)
        delays_ms = animation.delays_ms if animation else ()
        self.num_frames = self.num_decoded = max(1, len(delays_ms))
        self._has_frames = bool(delays_ms)
        self.end_s = sum(delays_ms) / 1000
        is_regular = len(set(delays_ms)) == 1
        self.fps = len(delays_ms) / self.end_s if is_regular else None
        self.starts_s: Sequence[float] | None = None
        if delays_ms and not is_regular:
            self.starts_s = list(accumulate((delay / 1000 for delay in delays_ms[:-1]), initial=0.0))

    def read(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        with open_image(self._source) as image:
            # Of an animated PNG, Pillow counts a picture that is none of its frames.
            first = int(self._has_frames and getattr(image, "default_image", False))
            for index in indices:
                with decoding(self._source):
                    image.seek(first + index)
                    frame = rgb_from_image(image)
                yield frame.copy() if frame is image else frame  # the next seek draws over `image`
