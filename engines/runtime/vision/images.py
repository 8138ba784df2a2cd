"""The pictures of a prompt and their places: what can be encoded, recognised and reused on its own.

A picture or video is its patches and its grid. Two prompts that show the same one share its digest, whatever stands
around it; pictures of any prompts can be packed into one call of the vision engine.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import numpy.typing as npt

from engines.session import DeviceVisionSession, EngineError, VisionSession
from export.checkpoint.config import ModelConfig
from export.inputs import Embeds, ModelInputs, VisionInputs


@dataclass(frozen=True, eq=False)
class PromptImage:
    """One picture or video of a prompt."""

    digest: bytes
    """Of its grid, patches and patch positions: equal content, equal embeddings."""
    patches: npt.NDArray[np.float32]
    """[P, patch_values]; a view of the prompt's."""
    positions: npt.NDArray[np.int32]
    """[2, P]"""
    segment_patches: tuple[int, ...]
    """Patches of each segment: one of a picture, one a temporal step of a video."""
    first_token: int
    """Where in the prompt its first visual token stands."""
    last_token: int

    @property
    def num_patches(self) -> int:
        return len(self.patches)


def images_from_inputs(inputs: ModelInputs, model: ModelConfig) -> tuple[PromptImage, ...]:
    """The pictures and videos of a prompt in order of appearance.

    Hashes all patches, about a second per gigabyte, with the interpreter's lock released: call it where the prompt
    was prepared, not where the engine waits.
    """
    is_visual = (inputs.token_ids == model.image_token_id) | (inputs.token_ids == model.video_token_id)
    visual_tokens = np.flatnonzero(is_visual)
    pictures, start = [], 0
    for steps, rows, columns in inputs.grids:
        stop = start + steps * rows * columns
        patches, positions = inputs.patches[start:stop], inputs.positions[:, start:stop]
        digest = hashlib.sha256(repr((steps, rows, columns)).encode())
        digest.update(np.ascontiguousarray(patches).data)
        digest.update(np.ascontiguousarray(positions).data)
        first, last = start // model.vision.patches_per_token, stop // model.vision.patches_per_token - 1
        pictures.append(
            PromptImage(
                digest.digest(),
                patches,
                positions,
                (rows * columns,) * steps,
                int(visual_tokens[first]),
                int(visual_tokens[last]),
            )
        )
        start = stop
    return tuple(pictures)


def encode_rows(vision: VisionSession, inputs: VisionInputs) -> Embeds:
    """All patches of one call to visual tokens [V, C], on the device where the session can leave them there."""
    if hasattr(vision, "encode_on_device"):
        return cast("DeviceVisionSession", vision).encode_on_device(inputs)
    return vision.encode(inputs)


def encode_images(pictures: Sequence[PromptImage], vision: VisionSession, model: ModelConfig) -> list[Embeds]:
    """Encode pictures, of one prompt or of many, in one packed call: visual tokens [V_i, C] of each.

    Attention never crosses a segment, so what a picture is packed with changes nothing.

    Raises:
        EngineError: the engine's answer has another shape.
    """
    segments = [length for picture in pictures for length in picture.segment_patches]
    packed = VisionInputs.of(
        np.concatenate([picture.patches for picture in pictures]),
        np.concatenate([picture.positions for picture in pictures], axis=1),
        np.cumsum([0, *segments], dtype=np.int32),
    )
    embeds = encode_rows(vision, packed)
    num_patches = [picture.num_patches for picture in pictures]
    check_visual_embeds(embeds, sum(num_patches), model)
    stops = [0, *(np.cumsum(num_patches) // model.vision.patches_per_token).tolist()]
    # Copies: a view would keep the embeddings of the whole call in memory as long as one picture's are cached.
    return [embeds[start:stop].copy() for start, stop in pairwise(stops)]


def check_visual_embeds(visual_embeds: Embeds, num_patches: int, model: ModelConfig) -> None:
    """Raise EngineError unless there is a row of visual embeddings for every merged token of the patches."""
    expected = (num_patches // model.vision.patches_per_token, model.decoder.hidden_size)
    if visual_embeds.shape != expected:
        raise EngineError(
            f"the vision engine returned visual_embeds of shape {visual_embeds.shape}, expected {expected} "
            f"for {num_patches} patches. Was it built for this checkpoint?"
        )
