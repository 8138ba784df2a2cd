"""Cases as tensors, with pictures that are the same on every machine."""

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from export.checkpoint.config import ModelConfig
from export.inputs import ModelInputs, VisionInputs
from export.models.families import family_of
from export.models.qwen2_vl.positions import cu_seqlens_from_grids, patch_positions
from export.processor.patches import write_patches
from export.processor.settings import ImageSettings
from validate.cases.builtin import (
    PAST_THE_EDGE,
    Case,
    Image,
    Part,
    Profile,
    Prompt,
    Text,
    Video,
    outside_profile,
)


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case as arrays."""

    name: str
    prompts: tuple[ModelInputs, ...]
    prefill_chunk_tokens: int | None = None

    @property
    def num_patches(self) -> int:
        return sum(len(prompt.patches) for prompt in self.prompts)

    @property
    def num_segments(self) -> int:
        """Pictures, and temporal steps of videos."""
        return sum(steps for prompt in self.prompts for steps, _, _ in prompt.grids)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[B] tokens of each prompt."""
        return np.array([len(prompt.token_ids) for prompt in self.prompts], np.int64)

    def problem(self, profile: Profile, num_decode_steps: int) -> str | None:
        """Why the case lies outside of a profile; None if it does not."""
        return outside_profile(
            profile,
            self.lengths.tolist(),
            self.num_patches,
            num_decode_steps,
            self.prefill_chunk_tokens,
            self.num_segments,
        )

    def digest(self) -> str:
        """Identity of the inputs: a golden record of other inputs must not be compared with these."""
        digest = hashlib.sha256(f"{self.prefill_chunk_tokens}".encode())
        for prompt in self.prompts:
            for array in (prompt.token_ids, prompt.position_ids, prompt.patches, prompt.cu_seqlens):
                digest.update(str(array.shape).encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def options_that_hold(
    cases: Sequence[PreparedCase], profile: Profile, num_decode_steps: int
) -> dict[str, int]:
    """The options of `build` for an engine that takes all of the cases, where this profile has less, by name.

    Cases that go past the edge on purpose move with it, and are left out.
    """
    kept = [case for case in cases if not case.name.startswith(PAST_THE_EDGE)]
    longest = [int(case.lengths.max()) for case in kept]
    calls = [
        min(length, case.prefill_chunk_tokens or length) for length, case in zip(longest, kept, strict=True)
    ]
    needed = {
        "max_context": (max(longest, default=0) + num_decode_steps, profile.max_context_tokens),
        "max_patches": (max((case.num_patches for case in kept), default=0), profile.max_patches),
        "max_batch": (max((len(case.prompts) for case in kept), default=0), profile.max_batch),
        "max_prompt_tokens": (max(calls, default=0), profile.max_prompt_tokens),
        "max_segments": (max((case.num_segments for case in kept), default=0), profile.max_segments),
    }
    # One KV slot more than the batch: slot reuse is compared with a slot that nobody used.
    return {
        name: value + (name == "max_batch")
        for name, (value, held) in needed.items()
        if held is not None and value > held
    }


def prepare_case(case: Case, config: ModelConfig, settings: ImageSettings) -> PreparedCase:
    """Draw the case's tokens and pictures; the seed is its name and the prompt's place in it."""
    prompts = []
    for row, prompt in enumerate(case.prompts):
        seed = zlib.crc32(f"{case.name.removesuffix('_in_chunks')}/{row}".encode())
        prompts.append(prepare_prompt(prompt, config, settings, np.random.default_rng(seed)))
    return PreparedCase(case.name, tuple(prompts), case.prefill_chunk_tokens)


def prepare_prompt(
    prompt: Prompt, config: ModelConfig, settings: ImageSettings, generator: np.random.Generator
) -> ModelInputs:
    """Random text tokens, and pictures of soft shapes with grain, as a photograph has both."""
    grids = [grid_of_part(part) for part in prompt if not isinstance(part, Text)]
    tokens = [_part_tokens(part, config, generator) for part in prompt]
    token_ids = np.concatenate(tokens).astype(np.int64)
    position_ids, position_delta = family_of(config.model_type).position_ids(token_ids, grids, config)
    patches = [_draw_patches(grid, settings, generator) for grid in grids]
    empty = np.zeros((0, config.vision.patch_values), np.float32)
    return ModelInputs(
        token_ids=token_ids,
        position_ids=position_ids,
        position_delta=position_delta,
        patches=np.concatenate([empty, *patches]),
        positions=patch_positions(grids, config.vision.spatial_merge_size),
        cu_seqlens=cu_seqlens_from_grids(grids),
        grids=tuple(grids),
    )


def grid_of_part(part: Image | Video) -> tuple[int, int, int]:
    return (part.steps, part.height, part.width) if isinstance(part, Video) else (1, part.height, part.width)


def visual_token_ids(config: ModelConfig) -> tuple[int, int]:
    return config.image_token_id, config.video_token_id


def _part_tokens(part: Part, config: ModelConfig, generator: np.random.Generator) -> npt.NDArray[Any]:
    if isinstance(part, Text):
        special = (*visual_token_ids(config), config.vision_start_token_id, config.vision_end_token_id)
        drawn = generator.integers(0, config.decoder.vocab_size, 4 * part.num_tokens + 16)
        return drawn[~np.isin(drawn, special)][: part.num_tokens]
    steps, height, width = grid_of_part(part)
    pad = config.video_token_id if isinstance(part, Video) else config.image_token_id
    return np.full(steps * height * width // config.vision.patches_per_token, pad)


def _draw_patches(
    grid: tuple[int, int, int], settings: ImageSettings, generator: np.random.Generator
) -> npt.NDArray[np.float32]:
    steps, height, width = grid
    num_frames = 1 if steps == 1 else steps * settings.temporal_patch_size
    frames = [
        _draw_frame(height * settings.patch_size, width * settings.patch_size, generator)
        for _ in range(num_frames)
    ]
    patches = np.empty((steps * height * width, settings.patch_values), np.float32)
    write_patches(frames, settings, patches)
    return patches


def _draw_frame(height: int, width: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    coarse = generator.uniform(30, 225, (height // 28 + 1, width // 28 + 1, 3))
    soft = np.kron(coarse, np.ones((28, 28, 1)))[:height, :width]
    grain = generator.normal(0, 20, (height, width, 1))
    return np.clip(soft + grain, 0, 255).astype(np.uint8)


def image_from_patches(
    patches: npt.NDArray[np.float32], grid: tuple[int, int, int], settings: ImageSettings
) -> npt.NDArray[np.uint8]:
    """The first frame that these patches hold: uint8 [H, W, 3]. The way back from `write_patches`."""
    _, height, width = grid
    merge, size = settings.merge_size, settings.patch_size
    first_step = patches[: height * width].reshape(
        height // merge, width // merge, merge, merge, 3, settings.temporal_patch_size, size, size
    )
    frame = first_step[:, :, :, :, :, 0]  # [H/m, W/m, m, m, 3, p, p]
    pixels = frame.transpose(0, 2, 5, 1, 3, 6, 4).reshape(height * size, width * size, 3)
    mean, std = np.array(settings.image_mean), np.array(settings.image_std)
    frame_pixels: npt.NDArray[np.uint8] = np.clip(
        np.rint((pixels * std + mean) / settings.rescale_factor), 0, 255
    ).astype(np.uint8)
    return frame_pixels


def pack_patches(prompts: Sequence[ModelInputs]) -> VisionInputs:
    """All pictures and videos of a batch as one packed row."""
    grids = [grid for prompt in prompts for grid in prompt.grids]
    return VisionInputs.of(
        np.concatenate([prompt.patches for prompt in prompts]),
        np.concatenate([prompt.positions for prompt in prompts], axis=1),
        cu_seqlens_from_grids(grids),
    )
