"""Inputs of the decoder, for a piece of a prompt and for one new token."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from engines.runtime.sequence import TokenSequence
from export.checkpoint.config import ModelConfig
from export.inputs import DecoderInputs, Embeds, join_rows


def prefill_inputs(sequences: Sequence[TokenSequence], model: ModelConfig, max_tokens: int) -> DecoderInputs:
    """The next `max_tokens` prompt tokens of each sequence, padded on the right to the longest row.

    Every sequence must have prompt left, and `num_cached_tokens` + S must fit its slot (see `DecoderInputs`).
    """
    starts = [sequence.num_cached_tokens for sequence in sequences]
    stops = [
        min(start + max_tokens, sequence.num_prompt_tokens)
        for start, sequence in zip(starts, sequences, strict=True)
    ]
    lengths = np.subtract(stops, starts)  # [B]
    num_rows, num_columns = len(sequences), int(lengths.max())
    token_ids = np.full((num_rows, num_columns), padding_token_id(model), np.int64)
    position_ids = np.zeros((3, num_rows, num_columns), np.int32)
    for row, (sequence, start, stop) in enumerate(zip(sequences, starts, stops, strict=True)):
        token_ids[row, : stop - start] = sequence.request.inputs.token_ids[start:stop]
        position_ids[:, row, : stop - start] = sequence.request.inputs.position_ids[:, start:stop]
    return DecoderInputs(
        token_ids=token_ids,
        # A session that gave rows of its device takes them.
        visual_embeds=cast("npt.NDArray[np.float32]", _visual_rows(sequences, starts, stops)),
        position_ids=position_ids,
        write_index=np.array(starts, np.int64),
        kv_lengths=np.array(stops, np.int64),
        # Only the last chunk's logits are read. An engine's profile need not allow K' = 0 for the others.
        logits_index=(lengths - 1).astype(np.int64)[:, None],
    )


class DecodeRow(NamedTuple):
    """What one slot computes in a decode step."""

    token_id: int
    write_index: int
    position_id: int
    """The same on all three axes."""


def decode_row(sequence: TokenSequence) -> DecodeRow:
    """The newest token of a sequence that goes on."""
    position_id = sequence.num_cached_tokens + sequence.request.inputs.position_delta
    return DecodeRow(sequence.token_ids[-1], sequence.num_cached_tokens, position_id)


def idle_row(num_cached_tokens: int, model: ModelConfig, capacity: int) -> DecodeRow:
    """A throw-away token just past what a slot holds: rows are neighbouring slots, so none in between can be left out.

    In a full slot that overwrites the last entry, which must then not be read any more.
    """
    write_index = min(num_cached_tokens, capacity - 1)
    return DecodeRow(padding_token_id(model), write_index, write_index)


def decode_inputs(rows: Sequence[DecodeRow], model: ModelConfig) -> DecoderInputs:
    """One token for each of neighbouring slots, as a batch with S = 1."""
    token_ids, write_index, position_ids = np.array(rows, np.int64).T.copy()  # [B] each
    return DecoderInputs(
        token_ids=token_ids[:, None],
        visual_embeds=np.zeros((0, model.decoder.hidden_size), np.float32),
        position_ids=np.tile(position_ids[None, :, None].astype(np.int32), (3, 1, 1)),
        write_index=write_index,
        kv_lengths=write_index + 1,
        logits_index=np.zeros((len(rows), 1), np.int64),
    )


def padding_token_id(model: ModelConfig) -> int:
    """Any id that takes no row of the visual embeddings; what it computes is never read."""
    return next(
        token_id for token_id in range(3) if token_id not in (model.image_token_id, model.video_token_id)
    )


def _visual_rows(sequences: Sequence[TokenSequence], starts: list[int], stops: list[int]) -> Embeds:
    """The chunk's own rows of each sequence's visual embeddings; a view unless several rows of the batch have some."""
    rows = [
        sequence.visual_embeds[sequence.visual_offsets[start] : sequence.visual_offsets[stop]]
        for sequence, start, stop in zip(sequences, starts, stops, strict=True)
    ]
    with_visuals = [part for part in rows if len(part)]
    return join_rows(with_visuals or rows[:1])
