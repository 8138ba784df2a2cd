"""Decoder calls of a batch of prompts and their forced continuations."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from export.checkpoint.config import ModelConfig
from export.inputs import DecoderInputs, ModelInputs
from validate.cases.prompts import visual_token_ids


def prefill_call(
    prompts: Sequence[ModelInputs],
    visual_embeds: Sequence[npt.NDArray[np.float32]],
    config: ModelConfig,
    logits_index: Sequence[npt.NDArray[np.int64]],
    start: int = 0,
    stop: int | None = None,
) -> DecoderInputs:
    """One call with tokens `start` to `stop` of each prompt, padded on the right; each must be longer than `start`.

    Args:
        prompts: one for each row.
        visual_embeds: [V, C] of each whole prompt.
        config: says which tokens are visual.
        logits_index: for each prompt, which of the piece's tokens to project, counted from `start`.
        start, stop: the piece of the prompts; None: to their ends.
    """
    ends = [min(len(prompt.token_ids), stop or len(prompt.token_ids)) for prompt in prompts]
    token_ids = np.full((len(prompts), max(ends) - start), text_token_id(config), np.int64)
    position_ids = np.zeros((3, *token_ids.shape), np.int32)
    pieces = []
    for row, (prompt, end) in enumerate(zip(prompts, ends, strict=True)):
        token_ids[row, : end - start] = prompt.token_ids[start:end]
        position_ids[:, row, : end - start] = prompt.position_ids[:, start:end]
        pieces.append(_visual_rows(prompt, visual_embeds[row], start, end, config))
    return DecoderInputs(
        token_ids=token_ids,
        visual_embeds=np.concatenate(pieces),
        position_ids=position_ids,
        write_index=np.full(len(prompts), start, np.int64),
        kv_lengths=np.array(ends, np.int64),
        logits_index=_padded(logits_index),
    )


def decode_call(
    tokens: npt.NDArray[np.int64], prompts: Sequence[ModelInputs], step: int, config: ModelConfig
) -> DecoderInputs:
    """The `step`-th forced token of every row, [B], as a batch with S = 1."""
    write_index = np.array([len(prompt.token_ids) + step for prompt in prompts], np.int64)
    deltas = np.array([prompt.position_delta for prompt in prompts], np.int64)
    positions = (write_index + deltas).astype(np.int32)
    return DecoderInputs(
        token_ids=tokens[:, None],
        visual_embeds=np.zeros((0, config.decoder.hidden_size), np.float32),
        position_ids=np.broadcast_to(positions[None, :, None], (3, len(prompts), 1)).copy(),
        write_index=write_index,
        kv_lengths=write_index + 1,
        logits_index=np.zeros((len(prompts), 1), np.int64),
    )


def text_token_id(config: ModelConfig) -> int:
    """An id that takes no visual embedding, for padding."""
    return next(token_id for token_id in range(3) if token_id not in visual_token_ids(config))


def _visual_rows(
    prompt: ModelInputs, visual_embeds: npt.NDArray[np.float32], start: int, stop: int, config: ModelConfig
) -> npt.NDArray[np.float32]:
    is_visual = np.isin(prompt.token_ids, visual_token_ids(config))
    first, last = int(is_visual[:start].sum()), int(is_visual[:stop].sum())
    return visual_embeds[first:last]


def _padded(rows: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """[B, K']: shorter rows repeat their last index."""
    width = max(len(row) for row in rows)
    return np.stack([np.pad(row, (0, width - len(row)), mode="edge") for row in rows]).astype(np.int64)
