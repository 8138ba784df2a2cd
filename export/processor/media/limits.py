"""Limits of what is decoded of a picture or video, and of the damage that is taken."""

from dataclasses import dataclass

MAX_PICTURE_PIXELS = 2**27
"""134 megapixels, half a gigabyte when decoded. Cameras reach 108; a bomb's header claims far more."""


MAX_LOST_SHARE = 0.15
"""Of a damaged picture or video that is still taken, with a note of what was lost."""


@dataclass(frozen=True)
class MediaLimits:
    """Bounds that the loops of a decoder look at; a server sets narrower ones."""

    max_video_frames: int = 1 << 22
    """Frames in a video's file: nineteen hours at 60 a second."""
    max_animation_pixels: int = 1 << 34
    """Canvas times frames of an animated picture; a few kilobytes can claim thousands of huge frames."""
    max_seen_pixels: int | None = None
    """The most that a part may ask of a picture, or of each frame of a video; None: what the model knows."""
    max_seen_frames: int | None = None
    """The most frames that a part may ask to see of a video; None: what the model knows."""
    strict: bool = False
    """Whether any damage is an error."""


DEFAULT_LIMITS = MediaLimits()
