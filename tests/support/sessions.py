"""Runs a batch of prompts through any engine, the reference included."""

from typing import Any

import numpy as np
import numpy.typing as npt

from engines.session import DecoderSession, VisionSession
from export.inputs import VisionInputs
from tests.support.cases import Batch, decode_step


def relative_error(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Largest difference over the largest value; infinite where shapes differ or `actual` is not finite."""
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    if not expected.size:
        return 0.0
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def encode(vision: VisionSession, batch: Batch, width: int) -> npt.NDArray[np.float32]:
    """All pictures and videos of a batch packed in one call; [0, width] without any."""
    if not batch.grids:
        return np.zeros((0, width), np.float32)
    return vision.encode(VisionInputs.of(batch.patches, batch.positions, batch.cu_seqlens))


def greedy_tokens(
    decoder: DecoderSession,
    batch: Batch,
    visual_embeds: npt.NDArray[np.float32],
    num_steps: int,
    slot: int = 0,
) -> npt.NDArray[np.int64]:
    """Prefill, then the likeliest token step by step, whatever token it is: [B, num_steps]."""
    rows = np.arange(len(batch.prompts))
    logits = decoder.forward(slot, batch.prefill(visual_embeds))
    tokens = [logits[rows, batch.lengths - 1].argmax(-1)]
    while len(tokens) < num_steps:
        write_index = batch.lengths + len(tokens) - 1
        step = decode_step(tokens[-1], write_index, batch.deltas, visual_embeds.shape[1])
        tokens.append(decoder.forward(slot, step)[:, 0].argmax(-1))
    return np.stack(tokens, axis=1)


def logits_in_chunks(
    decoder: DecoderSession, batch: Batch, visual_embeds: npt.NDArray[np.float32], chunk: int
) -> npt.NDArray[np.float32]:
    """Of a prompt's tokens in slots from 1 on, `chunk` a call."""
    return np.concatenate([decoder.forward(1, part) for part in batch.chunks(visual_embeds, chunk)], axis=1)


def require_own_cache(decoder: DecoderSession, batch: Batch, width: int) -> None:
    """Text alone: what slot 1 computes changes nothing of slot 0's."""
    nothing = np.zeros((0, width), np.float32)
    first = decoder.forward(0, batch.prefill(nothing))
    decoder.forward(1, batch.prefill(nothing))
    step = decode_step(first[:, -1].argmax(-1), batch.lengths, batch.deltas, width)
    alone = decoder.forward(0, step).copy()
    decoder.forward(1, step)
    assert np.array_equal(alone, decoder.forward(0, step))
