"""What penalties, biases and masks make of the likeliest tokens' logits, and how high they can lift any other token.

It is what `sampling.next_token` does before the temperature, for R rows at once. Every adjustment grows with the logit,
and float32 rounds alike for all: what it makes of the edge at its most favourable bounds the tokens below.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engines.runtime.tokens.chooser import Chooser, Mask
from engines.runtime.tokens.heads import Heads

Scores = npt.NDArray[np.float32]


def adjusted_heads(
    choosers: Sequence[Chooser], heads: Heads, allowed: Sequence[Mask | None]
) -> tuple[Scores, Scores]:
    """Scores [R, n] of the known tokens, and bounds [R] on those of all others."""
    if not any(chooser.may_lower for chooser in choosers):
        return heads.logits, heads.edge
    scores, bound = heads.logits.copy(), heads.edge.copy()
    repeating = [r for r, chooser in enumerate(choosers) if chooser.config.repetition_penalty != 1.0]
    if repeating:
        _penalize_repetition(choosers, heads, scores, bound, repeating)
    counting = [r for r, chooser in enumerate(choosers) if chooser.counts is not None]
    if counting:
        _penalize_presence(choosers, heads, scores, bound, counting)
    for r, chooser in enumerate(choosers):
        if chooser.names_tokens:
            bound[r] = chooser.adjust_named(scores[r], heads.ids[r], bound[r])
        mask = allowed[r]
        if mask is not None:
            scores[r][~mask[heads.ids[r]]] = -np.inf
    _suppress(choosers, heads, scores)
    return scores, bound


def _penalize_repetition(
    choosers: Sequence[Chooser], heads: Heads, scores: Scores, bound: Scores, rows: list[int]
) -> None:
    """See `sampling.apply_repetition_penalty`."""
    penalty = np.array([choosers[r].config.repetition_penalty for r in rows], np.float32)
    is_seen = np.array([choosers[r].seen[heads.ids[r]] for r in rows])
    with np.errstate(over="ignore"):
        found = scores[rows]
        scores[rows] = np.where(is_seen, _penalized(found, penalty[:, None]), found)
        bound[rows] = np.maximum(bound[rows], _penalized(bound[rows], penalty))


def _penalized(scores: Scores, penalty: Scores) -> Scores:
    return np.where(scores < 0, scores * penalty, scores / penalty)


def _penalize_presence(
    choosers: Sequence[Chooser], heads: Heads, scores: Scores, bound: Scores, rows: list[int]
) -> None:
    """See `penalties.adjusted_logits`."""
    presence = np.array([choosers[r].config.presence_penalty for r in rows])[:, None]
    frequency = np.array([choosers[r].config.frequency_penalty for r in rows])[:, None]
    counts = np.array([choosers[r].counts[heads.ids[r]] for r in rows])  # type: ignore[index]
    scores[rows] -= np.where(counts > 0, presence + frequency * counts, 0.0).astype(np.float32)
    extremes = np.array([[1, choosers[r].most_often] for r in rows])
    bound[rows] -= np.minimum(presence + frequency * extremes, 0.0).min(axis=1).astype(np.float32)


def _suppress(choosers: Sequence[Chooser], heads: Heads, scores: Scores) -> None:
    """Rows of one checkpoint suppress the same tokens, so one look-up serves them all."""
    by_mask: dict[int, list[int]] = {}
    for r, chooser in enumerate(choosers):
        if chooser.suppressed is not None:
            by_mask.setdefault(id(chooser.suppressed), []).append(r)
    for rows in by_mask.values():
        suppressed = choosers[rows[0]].suppressed
        assert suppressed is not None
        if len(rows) == len(choosers):
            scores[suppressed[heads.ids]] = -np.inf
        else:
            scores[rows] = np.where(suppressed[heads.ids[rows]], np.float32(-np.inf), scores[rows])
