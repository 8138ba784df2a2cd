"""Which tensors does the decoder get for a piece of a prompt, and which for one new token?"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engines.runtime.answer import Answer
from engines.session import DecoderInputs
from export.config import ModelConfig


def prefill_inputs(answers: Sequence[Answer], model: ModelConfig, max_tokens: int) -> DecoderInputs:
    """The next `max_tokens` prompt tokens of each answer, padded on the right to the longest row.

    Every answer must have prompt left, and `num_cached_tokens` + S must fit its slot (see `DecoderInputs`).
    """
    starts = [answer.num_cached_tokens for answer in answers]
    stops = [
        min(start + max_tokens, answer.num_prompt_tokens)
        for start, answer in zip(starts, answers, strict=True)
    ]
    lengths = np.subtract(stops, starts)  # [B]
    num_rows, num_columns = len(answers), int(lengths.max())
    token_ids = np.full((num_rows, num_columns), padding_token_id(model), np.int64)
    position_ids = np.zeros((3, num_rows, num_columns), np.int32)
    for row, (answer, start, stop) in enumerate(zip(answers, starts, stops, strict=True)):
        token_ids[row, : stop - start] = answer.request.inputs.token_ids[start:stop]
        position_ids[:, row, : stop - start] = answer.request.inputs.position_ids[:, start:stop]
    return DecoderInputs(
        token_ids=token_ids,
        visual_embeds=_visual_rows(answers, starts, stops),
        position_ids=position_ids,
        write_index=np.array(starts, np.int64),
        kv_lengths=np.array(stops, np.int64),
        # Only the last chunk's logits are read. An engine's profile need not allow K' = 0 for the others.
        logits_index=(lengths - 1).astype(np.int64)[:, None],
    )


def decode_inputs(answers: Sequence[Answer], model: ModelConfig, capacity: int) -> DecoderInputs:
    """The newest token of each answer, as a batch with S = 1.

    A finished answer in between computes a throw-away token just past its end: rows are neighbouring slots,
    so it cannot be left out. (In a full slot that overwrites the last entry, which nothing reads any more.)
    """
    write_index = np.array([min(answer.num_cached_tokens, capacity - 1) for answer in answers], np.int64)
    deltas = np.array([answer.request.inputs.position_delta for answer in answers], np.int64)
    positions = (write_index + deltas).astype(np.int32)  # [B], the same on all three axes
    padding = padding_token_id(model)
    tokens = [padding if answer.is_finished else answer.token_ids[-1] for answer in answers]
    return DecoderInputs(
        token_ids=np.array(tokens, np.int64)[:, None],
        visual_embeds=answers[0].visual_embeds[:0],
        position_ids=np.broadcast_to(positions[None, :, None], (3, len(answers), 1)).copy(),
        write_index=write_index,
        kv_lengths=write_index + 1,
        logits_index=np.zeros((len(answers), 1), np.int64),
    )


def padding_token_id(model: ModelConfig) -> int:
    """Any id that takes no row of the visual embeddings; what it computes is never read."""
    return next(
        token_id for token_id in range(3) if token_id not in (model.image_token_id, model.video_token_id)
    )


def _visual_rows(answers: Sequence[Answer], starts: list[int], stops: list[int]) -> npt.NDArray[np.float32]:
    """The chunk's own rows of each answer's visual embeddings; a view unless several rows of the batch have some."""
    rows = [
        answer.visual_embeds[answer.visual_offsets[start] : answer.visual_offsets[stop]]
        for answer, start, stop in zip(answers, starts, stops, strict=True)
    ]
    with_visuals = [part for part in rows if len(part)]
    return np.concatenate(with_visuals) if len(with_visuals) > 1 else (with_visuals or rows)[0]
