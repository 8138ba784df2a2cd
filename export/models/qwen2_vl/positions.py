"""Positions of patches and tokens.

For the vision encoder: the row and column of every patch, and which patches may see one another. For the decoder:
the three M-RoPE ids of every token (Qwen2-VL paper, section 2.1).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from export.errors import UserError
from export.inputs import Grid
from export.models.configuration import ModelConfig


def patch_positions(grids: Sequence[Grid], spatial_merge_size: int = 2) -> NDArray[np.int32]:
    """Row and column of every patch, in merge order: int32 [2, P].

    The patches of a 2 x 2 block stand together, as in `patches`. A picture of 2 x 4 patches holds two blocks:

        rows     0 0 1 1   0 0 1 1
        columns  0 1 0 1   2 3 2 3

    Every temporal step of a video repeats the same rows and columns: the vision encoder knows no time.
    """
    parts = [_grid_positions(grid, spatial_merge_size) for grid in grids]
    return np.concatenate(parts, axis=1) if parts else np.zeros((2, 0), np.int32)


def _grid_positions(grid: Grid, merge: int) -> NDArray[np.int32]:
    steps, height, width = grid
    # [2, H, W] -> [2, H/m, W/m, m, m]
    positions = np.indices((height, width), dtype=np.int32)
    blocks = positions.reshape(2, height // merge, merge, width // merge, merge).transpose(0, 1, 3, 2, 4)
    return np.tile(blocks.reshape(2, -1), steps)


def cu_seqlens_from_grids(grids: Sequence[Grid]) -> NDArray[np.int32]:
    """Patch offsets of the segments inside which attention stays: int32 [N + 1].

    A picture is one segment and a video one per temporal step. A picture of 4 x 6 patches followed by a video of two
    steps of 2 x 4 patches has three segments, 24, 8 and 8 patches long:

        grids (1, 4, 6), (2, 2, 4)  ->  0 24 32 40

    Segment n covers the patches `cu_seqlens[n] : cu_seqlens[n + 1]`.
    """
    lengths = [height * width for steps, height, width in grids for _ in range(steps)]
    return np.cumsum([0, *lengths], dtype=np.int32)


def mrope_position_ids(
    token_ids: NDArray[np.int64], grids: Sequence[Grid], config: ModelConfig
) -> tuple[NDArray[np.int32], int]:
    """Temporal, height and width id of every token of one prompt: int32 [3, S], and the delta for decoding.

    Text has the same id on all three axes. A picture keeps one temporal id while its merged rows and columns count
    up; a video adds one temporal id per step. Whatever comes next starts one past the largest id so far, over all
    three axes. One text token, a picture of 4 x 6 patches (2 x 3 tokens), two text tokens:

        temporal  0   1 1 1 1 1 1   4 5
        height    0   1 1 1 2 2 2   4 5
        width     0   1 2 3 1 2 3   4 5

    Nine tokens reach id 5, so the delta is 5 + 1 - 9 = -3: the token at cache position p has id p + delta.
    (Transformers 5.23 leaves the temporal axis out of "largest", so it departs on videos with more steps than rows
    and columns of tokens; 4.57.6 follows the paper.)

    Args:
        token_ids: [S], with as many image or video tokens for each grid as it has merged patches.
        grids: pictures and videos in order of appearance.

    Raises:
        UserError: the image and video tokens do not fit the grids.
    """
    merge = config.vision.spatial_merge_size
    is_visual = (token_ids == config.image_token_id) | (token_ids == config.video_token_id)
    lengths = [steps * (height // merge) * (width // merge) for steps, height, width in grids]
    if int(is_visual.sum()) != sum(lengths):
        raise UserError(
            f"The prompt has {int(is_visual.sum())} image and video tokens, but its {len(grids)} pictures and videos "
            f"need {sum(lengths)}.",
            "Give one placeholder for each picture or video.",
        )
    position_ids = np.empty((3, len(token_ids)), np.int32)
    token, next_id = 0, 0
    for grid, start, length in zip(grids, _visual_starts(is_visual, lengths), lengths, strict=True):
        next_id = _write_text(position_ids, token, start, next_id)
        token = start + length
        _require_one_kind(token_ids[start:token], grid)
        visual_ids = np.indices((grid[0], grid[1] // merge, grid[2] // merge), dtype=np.int32).reshape(3, -1)
        position_ids[:, start:token] = visual_ids + next_id
        next_id += int(visual_ids.max(initial=-1)) + 1
    next_id = _write_text(position_ids, token, len(token_ids), next_id)
    return position_ids, next_id - len(token_ids)


def _visual_starts(is_visual: NDArray[np.bool_], lengths: Sequence[int]) -> list[int]:
    """Index of the first token of each picture and video."""
    offsets = np.cumsum([0, *lengths])[:-1]
    return [int(start) for start in np.flatnonzero(is_visual)[offsets]]


def _require_one_kind(tokens: NDArray[np.int64], grid: Grid) -> None:
    if (tokens != tokens[0]).any():
        raise UserError(
            f"A picture or video of grid {grid} needs {len(tokens)} equal placeholder tokens in a row, "
            f"found the tokens {sorted(set(tokens.tolist()))}. Do not cut or mix expanded placeholders."
        )


def _write_text(position_ids: NDArray[np.int32], start: int, stop: int, next_id: int) -> int:
    position_ids[:, start:stop] = np.arange(next_id, next_id + stop - start)
    return next_id + stop - start
