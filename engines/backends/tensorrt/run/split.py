"""Splits one call of a session into the calls that an engine can take.

An engine takes what its limits allow; the interface has none but the cache's. So long prompts go in chunks, many asked
logits in several rounds, and many pictures in groups. All of it is arithmetic on the inputs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from export.errors import UserError
from export.inputs import DecoderInputs


@dataclass(frozen=True, eq=False)
class DecoderCall:
    """One call of the decoder's engine, and where its logits go."""

    inputs: DecoderInputs
    columns: npt.NDArray[np.int64]
    """[Q] of the session's `logits_index` that the call's columns answer."""
    is_asked: npt.NDArray[np.bool_]
    """[B, Q] True where the call's logits are the asked ones; a row's others belong to another chunk."""


def decoder_calls(
    inputs: DecoderInputs, visual_token_ids: tuple[int, int], max_tokens: int, max_logits_tokens: int
) -> Iterator[DecoderCall]:
    """Cut a call into chunks of `max_tokens` query tokens, each repeated until all its logits were asked.

    A repeated chunk writes the same keys and values to the same place, so only time is lost. Rows that end before a
    chunk starts run through it as padding.
    """
    num_tokens, num_columns = inputs.token_ids.shape[1], inputs.logits_index.shape[1]
    if num_tokens <= max_tokens and num_columns <= max_logits_tokens:
        yield DecoderCall(inputs, np.arange(num_columns), np.ones_like(inputs.logits_index, np.bool_))
        return
    for start in range(0, num_tokens, max_tokens):
        chunk = _chunk(inputs, visual_token_ids, start, min(start + max_tokens, num_tokens))
        stop = start + chunk.token_ids.shape[1]
        is_here = (start <= inputs.logits_index) & (inputs.logits_index < stop)
        wanted = np.flatnonzero(is_here.any(axis=0))
        for first in range(0, max(len(wanted), 1), max_logits_tokens):
            columns = wanted[first : first + max_logits_tokens]
            index = np.clip(inputs.logits_index[:, columns] - start, 0, stop - start - 1)
            # An engine projects one token at least.
            asked = index if len(columns) else np.zeros((len(index), 1), np.int64)
            yield DecoderCall(replace(chunk, logits_index=asked), columns, is_here[:, columns])


def joined_columns(
    calls: Sequence[DecoderCall], answers: Sequence[npt.NDArray[Any]], num_columns: int
) -> npt.NDArray[Any]:
    """What the calls answered, [B, columns, ...] each, as the answer of the call that was cut: [B, Q, ...]."""
    if len(calls) == 1:
        return answers[0]
    joined = np.empty((len(answers[0]), num_columns, *answers[0].shape[2:]), answers[0].dtype)
    for call, answer in zip(calls, answers, strict=True):
        for i, column in enumerate(call.columns):
            rows = call.is_asked[:, i]
            joined[rows, column] = answer[rows, i]
    return joined


def _chunk(inputs: DecoderInputs, visual_token_ids: tuple[int, int], start: int, stop: int) -> DecoderInputs:
    """Query tokens `start` to `stop` of every row, with the visual embeddings of the pads among them."""
    is_pad = np.isin(inputs.token_ids, visual_token_ids)
    number = is_pad.cumsum().reshape(is_pad.shape) - 1  # of each pad in the whole call, row after row
    numbers = number[:, start:stop][is_pad[:, start:stop]]
    write_index = inputs.write_index + start
    return replace(
        inputs,
        token_ids=inputs.token_ids[:, start:stop],
        # A pad beyond the last embedding stays a plain token; such pads are the call's last, and so the chunk's.
        visual_embeds=inputs.visual_embeds[numbers[numbers < len(inputs.visual_embeds)]],
        position_ids=inputs.position_ids[:, :, start:stop],
        write_index=write_index,
        kv_lengths=np.minimum(inputs.kv_lengths, inputs.write_index + stop),
    )


def vision_calls(
    cu_seqlens: npt.NDArray[np.int32], max_patches: int, max_segments: int
) -> Iterator[tuple[int, int]]:
    """First and last + 1 segment of each call: as many neighbours as fit.

    Raises:
        UserError: one picture, or one step of a video, is larger than the engine takes.
    """
    lengths = np.diff(cu_seqlens)
    if lengths.max() > max_patches:
        raise UserError(
            f"A picture has {lengths.max():,} patches of 14 x 14 pixels, the engine takes {max_patches:,} at once.",
            f"Lower the processor's max_pixels to {max_patches * 14 * 14:,}, or build with "
            f"--max-patches {lengths.max()}.",
        )
    first = 0
    for last in range(1, len(lengths) + 1):
        is_full = last < len(lengths) and (
            cu_seqlens[last + 1] - cu_seqlens[first] > max_patches or last - first == max_segments
        )
        if is_full or last == len(lengths):
            yield first, last
            first = last
