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
_ID_BITS = 32


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
    biasing = [r for r, chooser in enumerate(choosers) if len(chooser.biased_ids)]
    if biasing:
        _add_biases(choosers, heads, scores, bound, biasing)
    for r, chooser in enumerate(choosers):
        if chooser.may_rule_out:
            chooser.rule_out(scores[r], heads.ids[r])
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


def _add_biases(
    choosers: Sequence[Chooser], heads: Heads, scores: Scores, bound: Scores, rows: list[int]
) -> None:
    """Biases of all rows by one look-up. A bound grows by the largest bias of a token that is not known."""
    named = [choosers[r].biased_ids for r in rows]
    biases = np.concatenate([choosers[r].biases for r in rows])
    # A row's number above its ids: all of them are one ascending list.
    keys_of_names = np.concatenate([ids + (row << _ID_BITS) for row, ids in enumerate(named)])
    keys = heads.ids[rows] + (np.arange(len(rows)) << _ID_BITS)[:, None]
    place = keys_of_names.searchsorted(keys).clip(max=len(keys_of_names) - 1)
    found = scores[rows]
    at = np.nonzero((keys_of_names[place] == keys) & (found > -np.inf))
    places = place[at]
    found[at] += biases[places]
    scores[rows] = found
    biases[places] = 0.0
    starts = np.cumsum([0, *map(len, named[:-1])])
    bound[rows] += np.maximum(np.maximum.reduceat(biases, starts), np.float32(0.0))
    bound[[r for r in rows if not choosers[r].is_bias_sound]] = np.inf


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
