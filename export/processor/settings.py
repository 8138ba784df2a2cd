"""Sizes, budgets and numbers that the checkpoint asks of pictures and videos.

Read from the first of `processor_config.json` (Transformers 5 nests `image_processor` and `video_processor` there),
`preprocessor_config.json` and `video_preprocessor_config.json` that speaks of the kind. What a file leaves out has
the default of Transformers' classes; every key must be known, because a setting that is silently dropped shows up
only as worse answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.errors import UserError
from export.files.checks import is_number
from export.files.json_object import read_json_object
from export.models.section import Section

PIXELS_PER_TOKEN = 28 * 28
MAX_VIDEO_TOKENS = 16384
"""Visual tokens of one video, all frames together (Qwen2-VL paper, section 2.1)."""


@dataclass(frozen=True)
class ImageSettings:
    """How a picture becomes patches. The defaults are those of Transformers' Qwen2VLImageProcessor."""

    min_pixels: int = 4 * PIXELS_PER_TOKEN
    max_pixels: int = 1280 * PIXELS_PER_TOKEN
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    resample: int = 3
    """Pillow's number of the resize filter; 3 is bicubic."""
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def factor(self) -> int:
        """Pixels along each side of one visual token: 28."""
        return self.patch_size * self.merge_size

    @property
    def patch_values(self) -> int:
        return 3 * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True)
class VideoSettings:
    """How a video becomes frames, and frames become patches. `frame` bounds the pixels of a single frame."""

    frame: ImageSettings = ImageSettings(min_pixels=128 * PIXELS_PER_TOKEN, max_pixels=768 * PIXELS_PER_TOKEN)
    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    max_tokens: int = MAX_VIDEO_TOKENS


_SIZE_KEYS = frozenset({"shortest_edge", "longest_edge", "min_pixels", "max_pixels"})
# Must hold, where a file speaks of them at all: the processor has no other behaviour.
_FIXED_VALUES: dict[str, tuple[Any, ...]] = {
    "do_convert_rgb": (True,),
    "do_resize": (True,),
    "do_rescale": (True,),
    "do_normalize": (True,),
    "do_center_crop": (False,),
    "do_pad": (False,),
    "data_format": ("channels_first",),
}
# Say nothing about the numbers: names of classes, how Transformers batches, what it returns.
_INERT_KEYS = frozenset(
    {
        "image_processor_type", "video_processor_type", "feature_extractor_type", "processor_class",
        "default_to_square", "disable_grouping", "device", "input_data_format", "return_tensors", "return_metadata",
    }
)  # fmt: skip
# Transformers' own sampling switches. Video files are always sampled here, frame lists count as sampled, and the
# paper's bound on a whole video takes the place of `cap_pixels_per_frame` and `max_video_tokens`.
_INERT_VIDEO_KEYS = frozenset(
    {
        "do_sample_frames",
        "cap_pixels_per_frame",
        "max_video_tokens",
        "use_token_compression",
        "video_metadata",
    }
)


def load_settings(directory: Path) -> tuple[ImageSettings, VideoSettings]:
    """Read the image and video settings of a checkpoint's directory.

    Raises:
        UserError: a file is broken, a setting is unknown, impossible, unsupported or contradicts another.
    """
    nested = _read_optional(directory / "processor_config.json")
    image_name, image_content = _first_section(
        directory, nested, "image_processor", "preprocessor_config.json"
    )
    image = image_settings_from_json(image_content, image_name)
    video_name, video_content = _first_section(
        directory, nested, "video_processor", "video_preprocessor_config.json"
    )
    return image, video_settings_from_json(video_content, image, video_name)


def image_settings_from_json(
    content: Mapping[str, Any], source: str = "preprocessor_config.json"
) -> ImageSettings:
    """Check one section and build the settings from it.

    Raises:
        UserError: unknown, unsupported, impossible or contradictory settings; all problems at once.
    """
    reader = _Reader(content)
    settings = reader.image_settings(ImageSettings())
    reader.raise_problems(source, known=_INERT_KEYS)
    return settings


def video_settings_from_json(
    content: Mapping[str, Any], image: ImageSettings, source: str = "video_preprocessor_config.json"
) -> VideoSettings:
    """Like `image_settings_from_json`, for videos: what a file leaves out follows the image settings and the paper.

    Raises:
        UserError: unknown, unsupported, impossible or contradictory settings; all problems at once.
    """
    reader = _Reader(content)
    paper = VideoSettings()
    frame = replace(image, min_pixels=paper.frame.min_pixels, max_pixels=paper.frame.max_pixels)
    settings = VideoSettings(
        frame=reader.image_settings(frame),
        fps=reader.number("fps", paper.fps),
        min_frames=reader.integer("min_frames", paper.min_frames),
        max_frames=reader.integer("max_frames", paper.max_frames),
    )
    if settings.min_frames > settings.max_frames:
        reader.problems.append(f"min_frames {settings.min_frames} is above max_frames {settings.max_frames}")
    if settings.max_frames < settings.frame.temporal_patch_size:
        reader.problems.append(f"max_frames must be at least {settings.frame.temporal_patch_size}")
    if settings.max_frames > settings.max_tokens:
        reader.problems.append(
            f"max_frames must be at most {settings.max_tokens}, the tokens one video may have"
        )
    for name in ("patch_size", "temporal_patch_size", "merge_size"):
        if getattr(settings.frame, name) != getattr(image, name):
            reader.problems.append(f"{name} differs from the image processor's {getattr(image, name)}")
    reader.raise_problems(source, known=_INERT_KEYS | _INERT_VIDEO_KEYS)
    return settings


def _read_optional(path: Path) -> Mapping[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _first_section(
    directory: Path, nested: Mapping[str, Any], section: str, filename: str
) -> tuple[str, Mapping[str, Any]]:
    content = nested.get(section)
    if content is None:
        return str(directory / filename), _read_optional(directory / filename)
    if not isinstance(content, Mapping):
        raise UserError(
            f"{directory / 'processor_config.json'}: {section} must be an object, found {content!r}."
        )
    return f"{directory / 'processor_config.json'}, {section}", content


class _Reader(Section):
    """Takes settings out of one section."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(content, [])

    def image_settings(self, default: ImageSettings) -> ImageSettings:
        for key, allowed in _FIXED_VALUES.items():
            if self.get(key, allowed[0]) not in allowed:
                self.problems.append(f"{key} is {self.content[key]!r}, only {allowed[0]!r} is supported")
        min_pixels = self._pixels("min_pixels", "shortest_edge", default.min_pixels)
        max_pixels = self._pixels("max_pixels", "longest_edge", default.max_pixels)
        if min_pixels > max_pixels:
            self.problems.append(f"min_pixels {min_pixels} is above max_pixels {max_pixels}")
        return ImageSettings(
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            patch_size=self.integer("patch_size", default.patch_size),
            temporal_patch_size=self.integer("temporal_patch_size", default.temporal_patch_size),
            merge_size=self.integer("merge_size", default.merge_size),
            resample=self.integer("resample", default.resample, minimum=0, maximum=5),
            rescale_factor=self.number("rescale_factor", default.rescale_factor),
            image_mean=self._channels("image_mean", default.image_mean),
            image_std=self._channels("image_std", default.image_std),
        )

    def raise_problems(self, source: str, known: frozenset[str]) -> None:
        unknown = sorted(self.unread() - known)
        if unknown:
            self.problems.append(
                f"unknown settings {', '.join(unknown)}: remove them if they change no pixel; known are "
                + ", ".join(sorted(self.asked()))
            )
        if self.problems:
            raise UserError(
                f"{source} holds settings that cannot be followed:\n- " + "\n- ".join(self.problems)
            )

    def _pixels(self, name: str, edge: str, default: int) -> int:
        """A budget may be spelled `min_pixels`, `size.shortest_edge` or `size.min_pixels`, even all at once."""
        size = self.get("size", {})
        if not isinstance(size, Mapping) or size.keys() - _SIZE_KEYS:
            problem = f"size must hold shortest_edge and longest_edge, in pixels of area, found {size!r}"
            self.problems += [problem] if problem not in self.problems else []
            return default
        spellings = {
            name: self.get(name, None),
            f"size.{edge}": size.get(edge),
            f"size.{name}": size.get(name),
        }
        given = {key: value for key, value in spellings.items() if value is not None}
        if len(set(map(repr, given.values()))) > 1:
            listed = ", ".join(f"{key} {value}" for key, value in given.items())
            self.problems.append(f"{listed} contradict each other: keep the one that is meant")
        return self.checked_integer(name, next(iter(given.values()), default))

    def _channels(self, key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        value = self.get(key, default)
        if is_number(value):
            value = [value] * 3
        valid = isinstance(value, list | tuple) and len(value) == 3
        valid = valid and all(map(is_number, value))
        if valid and (key != "image_std" or min(value) > 0):
            return (float(value[0]), float(value[1]), float(value[2]))
        above_zero = " above zero" if key == "image_std" else ""
        self.problems.append(f"{key} must be three numbers{above_zero}, found {value!r}")
        return default
