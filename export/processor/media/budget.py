"""A part's own budget of pixels, frames and seconds, as qwen-vl-utils names it.

Two things differ from there, and nothing else: `total_pixels` holds even where `min_pixels` would exceed it, and what
would be passed over in silence (one of two sides, a budget beside a size, more than is allowed) is an error.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from export.errors import UserError
from export.files.checks import is_number, is_whole
from export.processor.media.limits import MediaLimits
from export.processor.resize import smart_resize
from export.processor.settings import MAX_VIDEO_TOKENS, PIXELS_PER_TOKEN, ImageSettings, VideoSettings

PICTURE_KEYS = frozenset({"min_pixels", "max_pixels", "resized_height", "resized_width"})
VIDEO_KEYS = PICTURE_KEYS | {
    "fps", "nframes", "min_frames", "max_frames", "video_start", "video_end", "total_pixels",
}  # fmt: skip
KEYS_OF = {"image": PICTURE_KEYS, "video": VIDEO_KEYS}
"""Keys of a part beside its picture or video."""
_FRAME_KEYS = frozenset({"fps", "nframes", "min_frames", "max_frames"})
_NUMBERS = frozenset({"fps", "video_start", "video_end"})
LOW_DETAIL_PIXELS = 512 * 512
"""What OpenAI's `"detail": "low"` means here, or less: the size at which its models see such a picture."""


@dataclass(frozen=True)
class Budget:
    """What a part asks; None: as the checkpoint says."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    """Of a picture, or of each frame of a video."""
    resized_height: int | None = None
    resized_width: int | None = None
    """The size itself, rounded to multiples of 28; both or none."""
    fps: float | None = None
    nframes: int | None = None
    """Frames a second, or their number; not both."""
    min_frames: int | None = None
    max_frames: int | None = None
    video_start: float | None = None
    video_end: float | None = None
    """Seconds of the film between which it is seen."""
    total_pixels: int | None = None
    """Of a whole video: a frame's pixels times half the number of frames."""
    detail: str | None = None
    """`low`: `LOW_DETAIL_PIXELS` at most. Asking for little, it is followed where less than that is allowed."""

    @property
    def asked(self) -> dict[str, Any]:
        """The keys that are asked for, as `read_budget` takes them."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def beside(self, general: "Budget", kind: str) -> "Budget":
        """This part's budget where its request has a general one: of sizes, and of frames, its own hold alone.

        Raises:
            UserError: together they ask what cannot be followed.
        """
        own = self.asked
        groups = (PICTURE_KEYS | {"detail"}, _FRAME_KEYS)
        taken = {key for group in groups if own.keys() & group for key in group}
        given = {
            key: value for key, value in general.asked.items() if key in (KEYS_OF[kind] | {"detail"}) - taken
        }
        return read_budget(kind, given | own, f"A part of type {kind}") if given else self

    def image_settings(self, settings: ImageSettings, limits: MediaLimits) -> ImageSettings:
        """The checkpoint's settings with what is asked.

        Raises:
            UserError: more than the limits allow, or a least above the most.
        """
        return self._pixels(settings, most=limits.max_seen_pixels or MAX_VIDEO_TOKENS * PIXELS_PER_TOKEN)

    def video_settings(self, settings: VideoSettings, limits: MediaLimits) -> VideoSettings:
        """The same for a video.

        Raises:
            UserError: more than the limits allow, or a least above the most.
        """
        paper = VideoSettings()
        most_pixels = max(settings.frame.max_pixels, paper.frame.max_pixels)
        even = settings.frame.temporal_patch_size
        most_frames = limits.max_seen_frames or max(settings.max_frames, paper.max_frames)
        total_tokens = settings.max_tokens
        if self.total_pixels is not None:
            _at_most("total_pixels", self.total_pixels, settings.max_tokens * PIXELS_PER_TOKEN)
            total_tokens = max(1, self.total_pixels // PIXELS_PER_TOKEN)
        for name in ("nframes", "min_frames", "max_frames"):
            _at_most(name, getattr(self, name), most_frames)
        max_frames = (
            settings.max_frames if self.max_frames is None else max(even, self.max_frames // even * even)
        )
        min_frames = settings.min_frames if self.min_frames is None else -(-self.min_frames // even) * even
        if self.min_frames is not None and min_frames > max_frames:
            raise UserError(f"min_frames {self.min_frames} is above max_frames {max_frames}.")
        return replace(
            settings,
            frame=self._pixels(settings.frame, most=min(most_pixels, limits.max_seen_pixels or most_pixels)),
            fps=self.fps or settings.fps,
            min_frames=min(min_frames, max_frames),
            max_frames=min(max_frames, total_tokens),
            max_tokens=total_tokens,
        )

    def size(self, settings: ImageSettings) -> tuple[int, int] | None:
        """Height and width where the size itself is asked for.

        Raises:
            UserError: a side is more than 200 times the other.
        """
        if self.resized_height is None or self.resized_width is None:
            return None
        free = replace(settings, min_pixels=ImageSettings.min_pixels)
        return smart_resize(self.resized_height, self.resized_width, free)

    def _pixels(self, settings: ImageSettings, *, most: int) -> ImageSettings:
        if self.resized_height is not None and self.resized_width is not None:
            _at_most("resized_height x resized_width", self.resized_height * self.resized_width, most)
            return replace(settings, max_pixels=most)
        if self.detail == "low":
            largest = min(settings.max_pixels, most, LOW_DETAIL_PIXELS)
            return replace(settings, min_pixels=min(settings.min_pixels, largest), max_pixels=largest)
        for name in ("min_pixels", "max_pixels"):
            _at_most(name, getattr(self, name), most)
        least = settings.min_pixels if self.min_pixels is None else self.min_pixels
        largest = settings.max_pixels if self.max_pixels is None else self.max_pixels
        if self.min_pixels is not None and least > largest:
            raise UserError(f"min_pixels {least} is above max_pixels {largest}.")
        return replace(settings, min_pixels=min(least, largest), max_pixels=largest)


NO_BUDGET = Budget()


def read_budget(kind: str, given: Mapping[str, Any], where: str) -> Budget:
    """Check the values of a part.

    Args:
        kind: `image` or `video`.
        given: those of the part's keys that are in `KEYS_OF[kind]`, and `detail` where it is low; null is absent.
        where: names the part.

    Raises:
        UserError: values that are no numbers in their range, or that contradict each other; all of them at once.
    """
    values = {key: value for key, value in given.items() if value is not None}
    problems = [
        f"{key} is no budget of a part of type {kind}"
        for key in sorted(values.keys() - KEYS_OF[kind] - {"detail"})
    ]
    problems += [problem for key, value in values.items() if (problem := _problem(key, value))]
    if ("resized_height" in values) != ("resized_width" in values):
        problems.append("resized_height and resized_width need each other")
    if "resized_height" in values and values.keys() & {"min_pixels", "max_pixels"}:
        problems.append("resized_height and resized_width leave nothing for min_pixels and max_pixels to say")
    if "detail" in values and (sizes := sorted(values.keys() & PICTURE_KEYS)):
        problems.append(f"detail low and {', '.join(sizes)} contradict each other")
    if {"fps", "nframes"} <= values.keys():
        problems.append("fps and nframes exclude each other")
    if "nframes" in values and values.keys() & {"min_frames", "max_frames"}:
        problems.append("nframes leaves nothing for min_frames and max_frames to say")
    if not problems and values.get("video_start", 0) >= values.get("video_end", float("inf")):
        problems.append(
            f"video_start {values.get('video_start', 0)} is not before video_end {values['video_end']}"
        )
    if problems:
        raise UserError(f"{where} asks what cannot be followed: " + "; ".join(problems) + ".")
    return Budget(**values)


def _problem(key: str, value: Any) -> str | None:
    if key in _NUMBERS:
        least_is_open = key != "video_start"
        if is_number(value) and 0 <= value <= 1e9 and (value > 0 or not least_is_open):
            return None
        return (
            f"{key} must be a number {'above 0' if least_is_open else 'of at least 0'}, found {value!r:.40}"
        )
    if key == "detail" and value != "low":
        return f"detail must be low where it is a budget, found {value!r:.40}"
    if key not in _FIELDS or key == "detail":
        return None
    least = 2 if key in {"nframes", "max_frames"} else 1
    if is_whole(value) and least <= value <= 2**31 - 1:
        return None
    return f"{key} must be a whole number of at least {least}, found {value!r:.40}"


_FIELDS = frozenset(one.name for one in fields(Budget))


def _at_most(name: str, value: int | None, most: int) -> None:
    if value is not None and value > most:
        raise UserError(f"{name} is {value}; at most {most} is allowed here.")
