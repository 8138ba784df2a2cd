"""The prompts that an engine has to get right, at each level of thoroughness.

Cases are data: a case is a batch of prompts, a prompt is a row of parts. Nothing here knows an engine or a reference.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

from export.records.verdicts import LEVELS, LevelName


@dataclass(frozen=True)
class Profile:
    """The shapes an engine promises to take. What lies outside is reported as such, never as a wrong number."""

    max_context_tokens: int = 1024
    """Prompt and answer together: the capacity of a KV slot."""
    max_patches: int = 2048
    """Patches of all pictures and videos in one call of the vision graph."""
    max_batch: int = 4
    max_prompt_tokens: int | None = None
    """Tokens of each prompt in one decoder call; a longer one goes in chunks. None: as many as the context holds."""
    max_segments: int | None = None
    """Pictures, and temporal steps of videos, in one call of the vision graph. None: any number."""

    def is_narrower_than(self, other: "Profile") -> bool:
        """Whether some shape that the other takes is outside of this one."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return any(mine is not None and (theirs is None or mine < theirs) for mine, theirs in pairs)


PAST_THE_EDGE = "one_past_"
"""How the names of cases begin that go past a profile's edge on purpose."""


@dataclass(frozen=True)
class Text:
    num_tokens: int


@dataclass(frozen=True)
class Image:
    """A picture of `height` x `width` patches of 14 x 14 pixels, both even."""

    height: int
    width: int


@dataclass(frozen=True)
class Video:
    """`steps` temporal patches (two frames each) of `height` x `width` patches."""

    steps: int
    height: int
    width: int


Part = Text | Image | Video
Prompt = tuple[Part, ...]


@dataclass(frozen=True)
class Case:
    """Prompts that go through the engine as one batch."""

    name: str
    prompts: tuple[Prompt, ...]
    prefill_chunk_tokens: int | None = None
    """None: the whole prompt in one decoder call."""


@dataclass(frozen=True)
class Level:
    """What one run goes through."""

    name: LevelName
    cases: tuple[Case, ...]
    num_decode_steps: int
    """Teacher-forced after each prompt."""


def make_level(name: LevelName, profile: Profile) -> Level:
    """The cases of a level, each level holding those of the one before, cut to an engine's profile."""
    makers = _MAKERS[: LEVELS.index(name) + 1]
    num_decode_steps = 8 if name == "quick" else 40
    cases = [case for make_cases in makers for case in make_cases(profile, num_decode_steps)]
    return Level(name, tuple(cases), num_decode_steps)


def _quick_cases(_profile: Profile, _steps: int) -> list[Case]:
    unequal = (Text(3), Image(4, 4), Text(4), Image(6, 10), Text(2), Image(8, 2), Text(5))
    return [
        Case("text", ((Text(23),),)),
        Case("one_image", ((Text(5), Image(4, 6), Text(7)),)),
        Case("images_of_unequal_size", (unequal,)),
        Case("video", ((Text(6), Video(3, 6, 8), Text(5)),)),
        Case(
            "ragged_batch",
            (
                (Text(9),),
                (Text(2), Image(6, 4), Text(3), Video(2, 4, 4), Text(6)),
                (Text(4), Image(4, 4), Text(1)),
            ),
        ),
        Case("images_in_chunks", (unequal,), prefill_chunk_tokens=7),
    ]


def _standard_cases(profile: Profile, steps: int) -> list[Case]:
    longest = profile.max_context_tokens - steps
    mixed: Prompt = (
        Text(2),
        Video(2, 4, 6),
        Text(3),
        Image(6, 4),
        Text(4),
        Video(3, 6, 6),
        Image(4, 2),
        Text(5),
    )
    rows: tuple[Prompt, ...] = (
        mixed,
        (Text(40),),
        (Image(10, 6), Text(3)),
        (Text(1), Video(2, 4, 4), Text(17)),
    )
    return [
        *(
            _image_case(height, width)
            for height, width in ((2, 2), (2, 4), (4, 2), (14, 10), (16, 16), (26, 38))
        ),
        *_aspect_cases((20, 199)),
        *_edge_cases(profile, steps),
        Case("one_token", ((Text(1),),)),
        Case("long_video", ((Text(4), Video(9, 4, 6), Text(5), Image(4, 4), Text(3)),)),
        Case("image_first_and_last", ((Image(4, 8), Text(3), Image(6, 6)),)),
        Case(
            "eight_images",
            (tuple(part for i in range(8) for part in (Image(4 + 2 * (i % 3), 6), Text(1 + i))),),
        ),
        Case("mixed", (mixed,)),
        Case("mixed_in_chunks", (mixed,), prefill_chunk_tokens=16),
        Case("same_prompt_twice", (mixed, mixed)),
        Case("full_batch", rows[: profile.max_batch]),
        Case("full_batch_in_chunks", rows[: profile.max_batch], prefill_chunk_tokens=11),
        Case("context_limit", ((Text(longest),),)),
        Case(f"{PAST_THE_EDGE}context_limit", ((Text(longest + 1),),)),
    ]


def _exhaustive_cases(profile: Profile, steps: int) -> list[Case]:
    sides = (2, 6, 12, 20, 32)
    pairs: tuple[Prompt, ...] = ((Text(3), Image(12, 8), Text(60)), (Text(200),))
    return [
        *(_image_case(height, width, "grid") for height in sides for width in sides),
        *_aspect_cases((50, 100, 150)),
        *(Case(f"video_of_{n}_steps", ((Text(3), Video(n, 6, 4), Text(2)),)) for n in (1, 2, 5, 16)),
        *(Case(f"images_in_chunks_of_{n}", (pairs[0],), prefill_chunk_tokens=n) for n in (1, 2, 3, 32)),
        *(
            Case(f"batch_of_{n}", tuple(pairs[i % 2] for i in range(n)))
            for n in range(2, profile.max_batch + 1)
        ),
        Case(
            "sixteen_images",
            (tuple(part for i in range(16) for part in (Image(2 + 2 * (i % 4), 4), Text(2))),),
        ),
        Case(
            "context_limit_in_chunks",
            ((Text(profile.max_context_tokens - steps),),),
            prefill_chunk_tokens=100,
        ),
    ]


_MAKERS: tuple[Callable[[Profile, int], list[Case]], ...] = (_quick_cases, _standard_cases, _exhaustive_cases)


def _image_case(height: int, width: int, prefix: str = "image") -> Case:
    return Case(f"{prefix}_{height}x{width}", ((Text(4), Image(height, width), Text(6)),))


def _aspect_cases(ratios: tuple[int, ...]) -> list[Case]:
    """Up to 199:1: the processor refuses 200:1 and beyond."""
    return [
        case
        for ratio in ratios
        for case in (
            Case(f"wide_{ratio}_to_1", ((Text(4), Image(2, 2 * ratio), Text(6)),)),
            Case(f"tall_1_to_{ratio}", ((Text(4), Image(2 * ratio, 2), Text(6)),)),
        )
    ]


def _edge_cases(profile: Profile, steps: int) -> list[Case]:
    """A picture that just fits into the profile, and one just past it."""
    num_text, patches_per_token = 10, 4
    room = (profile.max_context_tokens - steps - num_text) * patches_per_token
    height, width = largest_grid(min(profile.max_patches, room))
    return [
        Case("largest_image", ((Text(4), Image(height, width), Text(6)),)),
        Case(f"{PAST_THE_EDGE}largest_image", ((Text(4), Image(height + 2, width + 2), Text(6)),)),
    ]


def largest_grid(max_patches: int) -> tuple[int, int]:
    """The most nearly square grid of even sides with the most patches up to `max_patches`, as near as 5 percent."""
    side = max(2, math.isqrt(max_patches) // 2 * 2)
    grids = [(height, max_patches // height // 2 * 2) for height in range(side, max(2, side // 2), -2)]
    return max(grids, key=lambda grid: (grid[0] * grid[1], grid[0]), default=(2, 2))


def num_tokens(prompt: Prompt, patches_per_token: int = 4) -> int:
    """Tokens of a prompt: a picture or video has one for every `patches_per_token` patches."""
    return sum(
        part.num_tokens if isinstance(part, Text) else _patches(part) // patches_per_token for part in prompt
    )


def num_patches(prompt: Prompt) -> int:
    return sum(_patches(part) for part in prompt)


def _patches(part: Part) -> int:
    match part:
        case Text():
            return 0
        case Image(height, width):
            return height * width
        case Video(steps, height, width):
            return steps * height * width


def outside_profile(
    profile: Profile,
    prompt_tokens: Sequence[int],
    num_patches: int,
    num_decode_steps: int,
    chunk_tokens: int | None = None,
    num_segments: int = 0,
) -> str | None:
    """Why a batch does not fit, or None.

    Args:
        profile: the engine's.
        prompt_tokens: length of each prompt.
        num_patches: of the whole batch.
        num_decode_steps: that follow each prompt.
        chunk_tokens: the most prompt tokens in one call; None: all.
        num_segments: of the whole batch.
    """
    problems = []
    most_tokens = min(max(prompt_tokens), chunk_tokens or max(prompt_tokens))
    if max(prompt_tokens) + num_decode_steps > profile.max_context_tokens:
        problems.append(
            f"a prompt of {max(prompt_tokens)} tokens and {num_decode_steps} decode steps exceed the context of "
            f"{profile.max_context_tokens} tokens"
        )
    if num_patches > profile.max_patches:
        problems.append(f"{num_patches} patches exceed the vision graph's {profile.max_patches}")
    if len(prompt_tokens) > profile.max_batch:
        problems.append(f"{len(prompt_tokens)} prompts exceed the batch of {profile.max_batch}")
    if profile.max_prompt_tokens is not None and most_tokens > profile.max_prompt_tokens:
        problems.append(f"a call of {most_tokens} prompt tokens exceeds {profile.max_prompt_tokens}")
    if profile.max_segments is not None and num_segments > profile.max_segments:
        problems.append(f"{num_segments} pictures and video steps exceed {profile.max_segments}")
    return "; ".join(problems) or None
