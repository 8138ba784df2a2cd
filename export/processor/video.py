"""Which frames of a video does the model see, and at which size?

Two frames a second of the film, 4 to 768; all at one size within the pixel budgets. Frames are decoded one after
another and shrunk at once, so that memory follows what the model sees (at most 16384 tokens, 77 MB of pixels), not
the length of the video.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.errors import UserError
from export.processor.container import ContainerFrames
from export.processor.frames import AnimationFrames, FrameSource, PictureFrames, pictures_in_folder
from export.processor.images import ImageSource, describe, path_of_file
from export.processor.media.limits import DEFAULT_LIMITS, MediaLimits
from export.processor.media.medium import DecodedMedium
from export.processor.media.timeline import sample_by_time, sample_frames
from export.processor.resize import video_frame_size
from export.processor.settings import VideoSettings

VideoSource = str | os.PathLike[str] | bytes | Sequence[ImageSource] | NDArray[np.uint8]

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
    source: VideoSource, settings: VideoSettings, limits: MediaLimits = DEFAULT_LIMITS
) -> DecodedMedium:
    """As `load_video`, with the seconds that are seen and what was lost."""
    frames = open_frames(source, limits)
    for _ in range(2):
        indices = _chosen(frames, settings)
        resized = _read_resized(frames, indices, settings)
        if len(resized) == len(indices):
            return DecodedMedium(resized, _seconds(frames, indices), tuple(frames.notes))
        # Packets without a picture of their own (VP8's hidden references) made the count too high. Now that the
        # frames have been counted by decoding, the second round is exact.
        frames.num_frames = frames.num_decoded
    raise UserError(f"{describe_video(source)} gives another number of frames each time it is decoded.")


def _chosen(frames: FrameSource, settings: VideoSettings) -> list[int]:
    if frames.starts_s is not None:
        return sample_by_time(frames.starts_s, frames.end_s, settings)
    return sample_frames(frames.num_frames, frames.fps, settings)


def _seconds(frames: FrameSource, indices: Sequence[int]) -> tuple[float, ...]:
    if frames.starts_s is not None:
        return tuple(round(frames.starts_s[index], 3) for index in indices)
    return tuple(round(index / frames.fps, 3) for index in indices) if frames.fps else ()


def open_frames(source: VideoSource, limits: MediaLimits = DEFAULT_LIMITS) -> FrameSource:
    """Prepare any kind of video for reading frame by frame.

    Raises:
        UserError: there is no frame in it, or it is broken.
    """
    name = describe_video(source)
    if isinstance(source, list | tuple | np.ndarray):
        return PictureFrames(list(source), name)
    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        return PictureFrames(pictures_in_folder(Path(source)), name)
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
    frames: FrameSource, indices: list[int], settings: VideoSettings
) -> list[NDArray[np.uint8]]:
    num_steps = -(-len(indices) // settings.frame.temporal_patch_size)
    filter_ = Image.Resampling(settings.frame.resample)
    resized: list[NDArray[np.uint8]] = []
    first_size = None
    for frame in frames.read(indices):
        if first_size is None:
            first_size = frame.size
            height, width = video_frame_size(frame.height, frame.width, num_steps, settings)
        if frame.size != first_size and frames.has_one_size:
            raise UserError(
                f"{frames.name}: all frames must have one size. The first is {first_size[0]} x {first_size[1]}, "
                f"frame {indices[len(resized)]} is {frame.width} x {frame.height}. Resize or crop them first."
            )
        resized.append(np.asarray(frame.resize((width, height), filter_)))
    return resized
