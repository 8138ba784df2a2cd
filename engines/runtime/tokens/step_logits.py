"""What a decoder's call says of each row's next token, as whole logits or as candidates, and the choice from it."""

from collections.abc import Sequence
from typing import Protocol, TypeGuard

import numpy as np
import numpy.typing as npt

from engines.runtime.tokens.choose import Outcome, choose_from_heads, choose_from_logits
from engines.runtime.tokens.chooser import Chooser, Mask
from engines.runtime.tokens.heads import Heads, heads_of, heads_of_candidates
from engines.runtime.tokens.sampling import TokenLogprobs, ordered_logprobs, token_logprobs
from engines.session import CandidateDecoder, Candidates, DecoderSession
from export.contract import NUM_CANDIDATES
from export.inputs import DecoderInputs

Logits = npt.NDArray[np.float32]


class StepLogits(Protocol):
    """Of the rows of one call with one asked token each, until the decoder's next call."""

    def choose(self, rows: Sequence[int], choosers: Sequence[Chooser]) -> list[Outcome]:
        """The next token of each of these rows."""
        ...

    def logprobs(self, row: int, token_id: int, num_top: int) -> TokenLogprobs:
        """See `sampling.token_logprobs`."""
        ...


def run_decoder(
    decoder: DecoderSession, first_slot: int, inputs: DecoderInputs, choosers: Sequence[Chooser | None]
) -> StepLogits:
    """Run a call that asks for one token's logits in each row.

    Args:
        decoder: which.
        first_slot: of row 0.
        inputs: of the call.
        choosers: what will choose from each row; None where nothing will.
    """
    guides = [chooser.guide for chooser in choosers if chooser is not None and chooser.guide is not None]
    if guides:
        guides[0].begin(guides)
    if not gives_candidates(decoder):
        return WholeLogits(decoder.forward(first_slot, inputs)[:, 0])
    asked_ids = _asked_ids(choosers)
    return CandidateLogits(decoder.candidates(first_slot, inputs, asked_ids), asked_ids)


def gives_candidates(decoder: DecoderSession) -> TypeGuard[CandidateDecoder]:
    """Whether a decoder has candidates to give."""
    return hasattr(decoder, "candidates")


def _asked_ids(choosers: Sequence[Chooser | None]) -> npt.NDArray[np.int64]:
    """[B, A], with -1 where a row asks for fewer; A is 1 at least, since an engine's input has a place."""
    asked = [() if chooser is None else chooser.asked_ids for chooser in choosers]
    ids = np.full((len(asked), max(1, *map(len, asked))), -1, np.int64)
    for row, found in enumerate(asked):
        ids[row, : len(found)] = found
    return ids


class WholeLogits:
    """Logits [B, vocab] in the host's memory."""

    def __init__(self, logits: Logits) -> None:
        self._logits = logits

    def choose(self, rows: Sequence[int], choosers: Sequence[Chooser]) -> list[Outcome]:
        """See `StepLogits`. The likeliest token is found by one pass; a draw goes by heads, all together."""
        outcomes: list[Outcome] = [0] * len(rows)
        drawing: list[tuple[int, Chooser, Logits, Mask | None]] = []
        masks, masked = self._masked(rows, choosers)
        for at, (row, chooser) in enumerate(zip(rows, choosers, strict=True)):
            if at in masked:
                outcomes[at] = masked[at]
                continue
            logits, allowed = self._logits[row], masks[at]
            if chooser.is_greedy or logits.size <= NUM_CANDIDATES or not np.isfinite(logits.max()):
                outcomes[at] = choose_from_logits(chooser, logits, chooser.generator, allowed)
            else:
                drawing.append((at, chooser, logits, allowed))
        if drawing:
            places, drawers, logits_of, masks_of = zip(*drawing, strict=True)
            heads = heads_of(
                logits_of,
                [chooser.asked_ids for chooser in drawers],
                [chooser.needs_sum for chooser in drawers],
            )
            found = choose_from_heads(drawers, heads, logits_of.__getitem__, masks_of)
            for at, outcome in zip(places, found, strict=True):
                outcomes[at] = outcome
        return outcomes

    def _masked(
        self, rows: Sequence[int], choosers: Sequence[Chooser]
    ) -> tuple[list[Mask | None], dict[int, Outcome]]:
        """The mask of each row, and what a mask alone decides: errors, and the likeliest of the allowed tokens."""
        masks: list[Mask | None] = [None] * len(rows)
        outcomes: dict[int, Outcome] = {}
        for at, chooser in enumerate(choosers):
            try:
                masks[at] = chooser.allowed()
            except Exception as error:  # noqa: BLE001  ends the request of this row and no other
                outcomes[at] = error
        alone = [
            (at, mask) for at, mask in enumerate(masks) if mask is not None and choosers[at].is_plain_in_form
        ]
        if alone:
            logits = self._logits[[rows[at] for at, _ in alone]]  # [A, vocab]
            scores = np.where(np.stack([mask for _, mask in alone]), logits, np.float32(-np.inf))
            best = scores.argmax(axis=1)
            is_sound = np.isfinite(logits.max(axis=1)) & np.isfinite(scores[np.arange(len(best)), best])
            for (at, _), token_id, is_clear in zip(alone, best.tolist(), is_sound.tolist(), strict=True):
                if is_clear and not choosers[at].is_suppressed(token_id):
                    outcomes[at] = token_id
        return masks, outcomes

    def logprobs(self, row: int, token_id: int, num_top: int) -> TokenLogprobs:
        """See `StepLogits`."""
        return token_logprobs(self._logits[row], token_id, num_top)


class CandidateLogits:
    """Candidates of B rows, and whole logits of those rows that they do not decide."""

    def __init__(self, candidates: Candidates, asked_ids: npt.NDArray[np.int64]) -> None:
        self._candidates, self._asked_ids = candidates, asked_ids
        self._whole: dict[int, Logits] = {}

    @property
    def num_whole_rows(self) -> int:
        """Rows whose whole logits were brought to the host."""
        return len(self._whole)

    def choose(self, rows: Sequence[int], choosers: Sequence[Chooser]) -> list[Outcome]:
        """See `StepLogits`."""
        outcomes: list[Outcome | None] = self._plain(rows, choosers)
        masks: dict[int, Mask | None] = {}
        for at in [at for at, outcome in enumerate(outcomes) if outcome is None]:
            try:
                masks[at] = choosers[at].allowed()
            except Exception as error:  # noqa: BLE001  ends the request of this row and no other
                outcomes[at] = error
        if masks:
            of_heads = [rows[at] for at in masks]
            chosen = [choosers[at] for at in masks]
            heads = self._heads(of_heads, len(chosen[0].seen))
            found = choose_from_heads(
                chosen, heads, lambda index: self._row(of_heads[index]), list(masks.values())
            )
            for at, outcome in zip(masks, found, strict=True):
                outcomes[at] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def _plain(self, rows: Sequence[int], choosers: Sequence[Chooser]) -> list[Outcome | None]:
        """The likeliest token, where that is the choice and has no equal."""
        top, ids = self._candidates.top_logits[:, 0], self._candidates.top_ids[:, 0]
        is_clear = np.isfinite(self._candidates.log_sum_exp[:, 0])
        if top.shape[1] > 1:
            is_clear &= top[:, 0] > top[:, 1]
        best, clear = ids[:, 0].tolist(), is_clear.tolist()
        return [
            best[row] if chooser.is_plain and clear[row] and not chooser.is_suppressed(best[row]) else None
            for row, chooser in zip(rows, choosers, strict=True)
        ]

    def _heads(self, rows: Sequence[int], vocab_size: int) -> Heads:
        found, asked_ids = self._candidates, self._asked_ids
        # All of them in their order, without a copy, where it is so.
        some = slice(None) if list(rows) == list(range(len(asked_ids))) else list(rows)
        return heads_of_candidates(
            found.top_logits[:, 0][some],
            found.top_ids[:, 0][some],
            found.log_sum_exp[:, 0][some],
            found.asked_logits[:, 0][some],
            asked_ids[some],
            vocab_size,
        )

    def _row(self, row: int) -> Logits:
        if row not in self._whole:
            self._whole[row] = self._candidates.whole(row)[0]
        return self._whole[row]

    def logprobs(self, row: int, token_id: int, num_top: int) -> TokenLogprobs:
        """See `StepLogits`. By the engine's own log-sum-exp, a float32: within 2e-6."""
        found = self._candidates
        ids, logits = found.top_ids[row, 0], found.top_logits[row, 0]
        is_known = logits > logits[-1]
        at = np.flatnonzero(is_known & (ids == token_id))
        if not len(at) or np.count_nonzero(is_known) < num_top or row in self._whole:
            return token_logprobs(self._row(row), token_id, num_top)
        log_sum = float(found.log_sum_exp[row, 0])
        return ordered_logprobs(
            float(logits[at[0]]), ids[is_known].tolist(), logits[is_known].tolist(), num_top, log_sum
        )
