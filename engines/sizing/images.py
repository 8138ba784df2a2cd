"""Limits that the pictures of a folder ask for; only their headers are read."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.sizing.limits import Limits
from export.errors import UserError
from export.processor.images import open_image
from export.processor.resize import smart_resize
from export.processor.settings import ImageSettings

MAX_FILES = 100_000
TEXT_TOKENS = 256
"""Room for the chat template and a question beside the pictures."""
ANSWER_TOKENS = 512
"""Room for an answer: `qv-export run`'s own default."""
_PATCHES_STEP = 256
_TOKENS_STEP = 64


@dataclass(frozen=True)
class ImageSizes:
    """What the pictures of a folder become."""

    directory: str
    patches: tuple[int, ...]
    """Of each picture, ascending."""
    skipped: tuple[str, ...]
    """Files that are no pictures or could not be read, with the reason."""

    def percentile(self, percent: float) -> int:
        """Patches that `percent` of the pictures do not exceed."""
        return self.patches[min(len(self.patches) - 1, int(len(self.patches) * percent / 100))]


def read_image_sizes(directory: Path, settings: ImageSettings) -> ImageSizes:
    """Look at every picture below a folder as the processor would see it.

    Args:
        directory: searched with its subfolders; symbolic links to folders are not followed.
        settings: the checkpoint's, which say how a picture is resized.

    Raises:
        UserError: no picture there.
    """
    patches, skipped = [], []
    for path in _files(directory):
        try:
            patches.append(_patches(path, settings))
        except UserError as error:
            skipped.append(str(error))
    if not patches:
        raise UserError(
            f"--profile-from {directory}: no picture found ({len(skipped)} files cannot be read as one).",
            "Give a folder of pictures like those that will be served.",
        )
    return ImageSizes(str(directory), tuple(sorted(patches)), tuple(skipped))


def _files(directory: Path) -> Iterator[Path]:
    files = (
        Path(parent, name)
        for parent, _, names in os.walk(directory)
        for name in sorted(names)
        if name[:1] != "."
    )
    for count, path in enumerate(files):
        if count == MAX_FILES:
            raise UserError(
                f"{directory} holds more than {MAX_FILES} files.", "Give a folder with a sample of them."
            )
        if path.is_file():
            yield path


def _patches(path: Path, settings: ImageSettings) -> int:
    with open_image(path) as image:  # checks the size that the header claims; decodes no pixel
        width, height = image.size
    # The EXIF rotation swaps the sides, which changes no area; the rounding is the same for both.
    resized_height, resized_width = smart_resize(height, width, settings)
    return (resized_height // settings.patch_size) * (resized_width // settings.patch_size)


def limits_for_images(sizes: ImageSizes, settings: ImageSettings, pictures_per_prompt: int) -> dict[str, int]:
    """Limits that serve any pictures of the folder together.

    The largest picture sets the patches of a vision call and, with room for text and answer, the tokens of a prompt;
    the smallest one sets how many segments a call of that many patches can hold.

    Args:
        sizes: of the folder's pictures.
        settings: the checkpoint's.
        pictures_per_prompt: that come in one prompt, and so in one vision call.
    """
    max_patches = _round_up(pictures_per_prompt * sizes.patches[-1], _PATCHES_STEP)
    prompt_tokens = _round_up(max_patches // settings.merge_size**2 + TEXT_TOKENS, _TOKENS_STEP)
    return {
        "max_patches": max_patches,
        "max_segments": min(Limits.max_segments, max_patches // sizes.patches[0]),
        "max_prompt_tokens": prompt_tokens,
        "max_context": _round_up(prompt_tokens + ANSWER_TOKENS, _TOKENS_STEP),
    }


def histogram(patches: Sequence[int], num_bins: int = 12) -> list[tuple[int, int, int]]:
    """(from, to, count) of equally wide bins of patches, from the smallest picture to the largest."""
    low, high = patches[0], patches[-1]
    width = max(1, -(-(high - low + 1) // num_bins))
    counts = [0] * (-(-(high - low + 1) // width))
    for value in patches:
        counts[(value - low) // width] += 1
    return [(low + i * width, low + (i + 1) * width - 1, count) for i, count in enumerate(counts)]


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
