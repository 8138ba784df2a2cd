"""The frames of a video that the model sees, and their size.

Two frames a second of the film, 4 to 768; all at one size within the pixel budgets. Frames are decoded one after
another and shrunk at once, so that memory follows what the model sees (at most 16384 tokens, 77 MB of pixels), not
the length of the video.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.errors import UserError
from export.processor.images import ImageSource, describe, path_of_file
from export.processor.media.budget import NO_BUDGET, Budget
from export.processor.media.chosen import choose_frames, seconds_of
from export.processor.media.limits import DEFAULT_LIMITS, MediaLimits
from export.processor.media.medium import DecodedMedium
from export.processor.resize import video_frame_size
from export.processor.settings import VideoSettings
from export.processor.video.container import ContainerFrames
from export.processor.video.frames import (
    AnimationFrames,
    FrameSource,
    ImageFrames,
    images_in_folder,
)

VideoSource = str | os.PathLike[str] | bytes | Sequence[ImageSource] | NDArray[np.uint8]

_MAX_WAITING = 2
"""Frames in their full size that wait to be shrunk."""
_ANIMATION_MAGIC = (b"GIF8", b"\x89PNG", b"RIFF")


def load_video(
    source: VideoSource, settings: VideoSettings, limits: MediaLimits = DEFAULT_LIMITS
) -> list[NDArray[np.uint8]]:
    """Decode, sample and resize one video.

    Args:
        source: a video file or its bytes; an animated GIF, WebP or PNG; a folder of pictures, in the natural order of
            their names; a list of pictures or an array uint8 [T, H, W, 3]. A folder, list or array counts as sampled
            already: every frame is used, up to `settings.max_frames`.
        settings: the checkpoint's.
        limits: of what is read and decoded at most.

    Returns:
        Frames, each uint8 [H, W, 3] of one size; an odd last one stands for a whole temporal step.

    Raises:
        UserError: no video, no frame, a broken or truncated file, frames of different sizes.
    """
    return list(read_video(source, settings, limits).frames)


def read_video(
    source: VideoSource,
    settings: VideoSettings,
    limits: MediaLimits = DEFAULT_LIMITS,
    budget: Budget = NO_BUDGET,
) -> DecodedMedium:
    """As `load_video`, with the seconds that are seen and what was lost; a budget changes what the settings say."""
    settings = budget.video_settings(settings, limits)
    frames = open_frames(source, limits)
    for _ in range(2):
        indices = choose_frames(frames, settings, budget)
        resized = _read_resized(frames, indices, settings, budget)
        if len(resized) == len(indices):
            return DecodedMedium(resized, seconds_of(frames, indices), notes=tuple(frames.notes))
        # Packets without a picture of their own (VP8's hidden references) made the count too high. Now that the
        # frames have been counted by decoding, the second round is exact.
        frames.num_frames = frames.num_decoded
    raise UserError(f"{describe_video(source)} gives another number of frames each time it is decoded.")


def open_frames(source: VideoSource, limits: MediaLimits = DEFAULT_LIMITS) -> FrameSource:
    """Prepare any kind of video for reading frame by frame.

    Raises:
        UserError: there is no frame in it, or it is broken.
    """
    name = describe_video(source)
    if isinstance(source, list | tuple | np.ndarray):
        return ImageFrames(list(source), name)
    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        return ImageFrames(images_in_folder(Path(source)), name)
    path_or_bytes = source if isinstance(source, bytes) else path_of_file(source)
    if _is_animation(path_or_bytes):
        return AnimationFrames(path_or_bytes, name, limits)
    return ContainerFrames(path_or_bytes, name, limits)


def describe_video(source: object) -> str:
    """Name a video in an error message."""
    if isinstance(source, bytes):
        return f"The video in {len(source)} bytes"
    if isinstance(source, list | tuple):
        return f"The list of {len(source)} frames"
    return describe(source)


def _is_animation(source: Path | bytes) -> bool:
    if isinstance(source, bytes):
        head = source[:12]
    else:
        try:
            with source.open("rb") as file:
                head = file.read(12)
        except OSError as error:
            raise UserError(f"{source} cannot be read: {error.strerror}.") from None
    # AVI files are RIFF files, too.
    return head.startswith(_ANIMATION_MAGIC) and (not head.startswith(b"RIFF") or head.endswith(b"WEBP"))


def _read_resized(
    frames: FrameSource, indices: list[int], settings: VideoSettings, budget: Budget
) -> list[NDArray[np.uint8]]:
    num_steps = -(-len(indices) // settings.frame.temporal_patch_size)
    filter_ = Image.Resampling(settings.frame.resample)
    shrunk: list[Future[Image.Image]] = []
    first_size = None
    # One frame is shrunk while the next ones are decoded: Pillow and FFmpeg both let go of Python's lock.
    with ThreadPoolExecutor(1) as shrinker:
        for frame in frames.read(indices):
            if first_size is None:
                first_size = frame.size
                height, width = _frame_size(frame, num_steps, settings, budget)
            if frame.size != first_size and frames.has_one_size:
                raise UserError(
                    f"{frames.name}: all frames must have one size. The first is {first_size[0]} x {first_size[1]}, "
                    f"frame {indices[len(shrunk)]} is {frame.width} x {frame.height}. Resize or crop them first."
                )
            shrunk.append(shrinker.submit(frame.resize, (width, height), filter_))
            if len(shrunk) > _MAX_WAITING:
                shrunk[-_MAX_WAITING].result()
    return [np.asarray(frame.result()) for frame in shrunk]


def _frame_size(
    frame: Image.Image, num_steps: int, settings: VideoSettings, budget: Budget
) -> tuple[int, int]:
    asked = budget.size(settings.frame)
    if asked is None:
        return video_frame_size(frame.height, frame.width, num_steps, settings)
    num_tokens = num_steps * asked[0] * asked[1] // settings.frame.factor**2
    if num_tokens > settings.max_tokens:
        raise UserError(
            f"resized_height and resized_width ask for {num_tokens} tokens in {num_steps} steps; a video has "
            f"{settings.max_tokens} at most.",
            "Ask for less, or for fewer frames.",
        )
    return asked
