"""The next tokens of several answers at once, by the likeliest candidates of each where those are enough to know them.

A choice from candidates is the one that `sampling.next_token` makes of whole logits with the same draw, or none: where
what is not known of the other tokens could change it, the row's whole logits are asked for. That is so for a token
below the candidates (a mask that allows none of them, a bias on a token not asked for), and for a sum that the others
decide (a draw or a top-p beyond the candidates' share). All rows go through each operation together.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from engines.runtime.tokens.chooser import Chooser
from engines.runtime.tokens.heads import Heads
from engines.runtime.tokens.sampling import Chance, Drawn, next_token

Logits = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MARGIN = 1e-5
"""How near a sum of probabilities may come to what it is compared with. `sampling` rounds them to float32: exponentials
by 1.2e-7 of themselves, their arguments by 6e-8 of up to 20, and sums of 151,936 in pairs by 2e-6; an engine's
log-sum-exp is a float32 of about 20, off by 1e-6."""


Outcome = int | Exception
"""A row's token, or why there is none: logits that are no numbers, a grammar that ran into a bound."""


def choose_from_heads(
    choosers: Sequence[Chooser],
    heads: Heads,
    whole: Callable[[int], Logits],
    allowed: Sequence[Mask | None],
) -> list[Outcome]:
    """One token for each row.

    Args:
        choosers: R of them; each that samples draws one number of its chance.
        heads: of the R rows.
        whole: gives all logits [vocab] of a row, for those that its head does not decide.
        allowed: see `Chooser.allowed`.
    """
    draws = np.array([0.0 if chooser.is_greedy else chooser.generator.random() for chooser in choosers])
    scores, bound = _adjusted(choosers, heads, allowed)
    tokens, is_decided = _decided(choosers, heads, scores, bound, draws)
    outcomes: list[Outcome] = tokens.tolist()
    for row in np.flatnonzero(~is_decided).tolist():
        outcomes[row] = choose_from_logits(choosers[row], whole(row), Drawn(draws[row]), allowed[row])
    return outcomes


def choose_from_logits(chooser: Chooser, logits: Logits, chance: Chance, allowed: Mask | None) -> Outcome:
    """One token from a row's whole logits [vocab]."""
    try:
        return next_token(logits, chooser.seen, chooser.config, chance, chooser.written, allowed)
    except Exception as error:  # noqa: BLE001  ends the request of this row and no other
        return error


def _adjusted(
    choosers: Sequence[Chooser], heads: Heads, allowed: Sequence[Mask | None]
) -> tuple[Scores, Scores]:
    """Scores [R, n] before the temperature, and bounds [R] on those of other tokens."""
    scores, bound = heads.logits, heads.edge
    changed = [r for r, chooser in enumerate(choosers) if chooser.is_adjusted]
    if changed:
        scores, bound = scores.copy(), bound.copy()
    for r in changed:
        scores[r], bound[r] = choosers[r].adjust(heads.logits[r], heads.ids[r], heads.edge[r], allowed[r])
    return scores, bound


def _decided(
    choosers: Sequence[Chooser], heads: Heads, scores: Scores, bound: Scores, draws: Weights
) -> tuple[npt.NDArray[np.int64], Mask]:
    """A token for each row [R], and for which rows it is the one. Not where a logit is no finite number."""
    largest = scores.max(axis=1)
    is_sound = np.isfinite(heads.logits.max(axis=1)) & np.isfinite(largest)
    is_decided = is_sound & (largest > bound)
    # Of equals the lowest id, wherever an engine put it.
    best = np.where(scores == largest[:, None], heads.ids, np.iinfo(np.int64).max).min(axis=1)
    is_drawn = np.array([not chooser.is_greedy for chooser in choosers])
    rows = np.flatnonzero(is_drawn & is_decided)
    if len(rows):
        drawing = _Draw([choosers[r] for r in rows.tolist()], heads, rows, scores[rows], bound[rows])
        best[rows], is_decided[rows] = drawing.tokens(draws[rows])
    return best, is_decided


class _Draw:
    """Draws of R rows: what is left of each row's candidates, and between which bounds the others' weights lie.

    Weights are relative to the likeliest token's, which is known.
    """

    def __init__(
        self,
        choosers: Sequence[Chooser],
        heads: Heads,
        rows: npt.NDArray[np.int64],
        scores: Scores,
        bound: Scores,
    ) -> None:
        configs = [chooser.config for chooser in choosers]
        temperature = np.array([config.temperature for config in configs], np.float32)
        self._top_k = np.array([config.top_k for config in configs])
        self._top_p = np.array([config.top_p for config in configs])
        self._min_p = np.array([config.min_p for config in configs], np.float32).astype(np.float64)
        self._ids, self._is_first = heads.ids[rows], heads.is_first[rows]
        with np.errstate(over="ignore", invalid="ignore"):
            self._scores = scores / temperature[:, None]
            self._bound = bound / temperature
            largest = self._scores.max(axis=1)
            self.is_decided = np.isfinite(largest) & (largest > self._bound)
            self._weights: Weights = np.exp((self._scores - largest[:, None]).astype(np.float64))
            self._bound_weight: Weights = np.exp((self._bound - largest).astype(np.float64))
        self._weights[~self.is_decided] = 0.0
        self._largest = largest.astype(np.float64)
        needs_sum = np.array([chooser.needs_sum for chooser in choosers])
        self._is_top_k = np.array([chooser.is_top_k for chooser in choosers])
        raised = bound > heads.edge[rows]
        lowered = np.array([chooser.is_adjusted for chooser in choosers])
        self._low, self._high = _others(
            heads, rows, temperature.astype(np.float64), self._largest, needs_sum & ~raised
        )
        self._low[lowered] = 0.0
        self._is_whole = self._bound == -np.inf  # nothing but the candidates is possible
        self._low[self._is_whole] = self._high[self._is_whole] = 0.0

    def tokens(self, draws: Weights) -> tuple[npt.NDArray[np.int64], Mask]:
        """A token for each row [R], and for which rows it is the one that whole logits give."""
        if self._is_top_k.any():
            self._apply_top_k()
        if (self._top_p < 1.0).any():
            self._apply_top_p()
        if (self._min_p > 0.0).any():
            self._apply_min_p()
        return self._drawn(draws)

    def _leave_others_out(self, rows: Mask) -> None:
        self._low[rows] = self._high[rows] = 0.0

    def _keep(self, kept: Mask) -> None:
        self._weights[~kept] = 0.0

    def _apply_top_k(self) -> None:
        """The largest and what equals the least of them: known where that one is above the bound."""
        is_filtered, num_known = self._is_top_k, self._scores.shape[1]
        place = num_known - np.minimum(np.where(is_filtered, self._top_k, 1), num_known)
        least = np.sort(self._scores, axis=1)[np.arange(len(place)), place]
        is_known = ((self._top_k <= num_known) & (least > self._bound)) | self._is_whole
        self.is_decided &= is_known | ~is_filtered
        self._keep((self._scores >= least[:, None]) | ~is_filtered[:, None])
        self._leave_others_out(is_filtered & is_known)

    def _apply_top_p(self) -> None:
        """The smallest set of likeliest tokens that holds the mass: known where both bounds of it give one number."""
        is_filtered = self._top_p < 1.0
        order = np.argsort(-self._weights, axis=1, kind="stable")
        ordered = np.take_along_axis(self._weights, order, axis=1)
        upto = np.cumsum(ordered, axis=1)
        known = upto[:, -1]
        # One place more, for the likeliest of the others: nobody knows it, but it may have to stay.
        before = np.concatenate([np.zeros((len(upto), 1)), upto], axis=1)
        removed = (1.0 - self._top_p)[:, None]
        with np.errstate(over="ignore", invalid="ignore"):
            fewest = _count(1.0 - before / (known + self._low)[:, None] > removed + MARGIN).clip(min=1)
            most = _count(1.0 - before / (known + self._high)[:, None] > removed - MARGIN).clip(min=1)
        is_beyond = fewest > ordered.shape[1]
        edge = ordered[np.arange(len(ordered)), np.where(is_beyond, 1, fewest) - 1]
        # The bound itself may be another token's score.
        is_known = (fewest == most) & ~is_beyond & ((edge > self._bound_weight) | (self._high == 0.0))
        kept = self._weights > edge[:, None]
        num_equal = fewest - kept.sum(axis=1)
        equals = (self._weights == edge[:, None]) & (edge > 0)[:, None]
        for r in np.flatnonzero(is_filtered & is_known):
            (places,) = np.nonzero(equals[r])
            kept[r, places[np.argsort(self._ids[r, places])[: num_equal[r]]]] = True
        self.is_decided &= is_known | ~is_filtered
        self._keep(kept | ~is_filtered[:, None])
        self._leave_others_out(is_filtered & is_known)

    def _apply_min_p(self) -> None:
        is_filtered = self._min_p > 0.0
        least = self._min_p[:, None]
        is_near = (self._weights > least * (1 - MARGIN)) & (self._weights < least * (1 + MARGIN))
        self.is_decided &= ~(is_filtered & is_near.any(axis=1))
        self._keep((self._weights >= least) | ~is_filtered[:, None])
        self._low[is_filtered] = 0.0
        self._leave_others_out(is_filtered & (self._bound_weight < self._min_p * (1 - MARGIN)))

    def _drawn(self, draws: Weights) -> tuple[npt.NDArray[np.int64], Mask]:
        order = np.argsort(self._ids + np.where(self._is_first, 0, 1 << 40), axis=1)
        cumulative = np.cumsum(np.take_along_axis(self._weights, order, axis=1), axis=1)
        known = cumulative[:, -1]
        # Where others are left, they come after the head, and between those that were asked for.
        num_ordered = np.where(self._high == 0.0, order.shape[1], self._is_first.sum(axis=1))
        with np.errstate(over="ignore", invalid="ignore"):
            low = draws * (known + self._low) - MARGIN * (known + self._low)
            high = draws * (known + self._high) + MARGIN * (known + self._high)
            place = _count(cumulative <= low[:, None])
            is_known = (_count(cumulative <= high[:, None]) == place) & (place < num_ordered)
        place = np.minimum(place, order.shape[1] - 1)
        rows = np.arange(len(order))
        return self._ids[rows, order[rows, place]], self.is_decided & is_known


def _count(found: Mask) -> npt.NDArray[np.int64]:
    """True ones of each row."""
    counts: npt.NDArray[np.int64] = found.sum(axis=1, dtype=np.int64)
    return counts


def _others(
    heads: Heads, rows: npt.NDArray[np.int64], temperature: Weights, largest: Weights, is_known: Mask
) -> tuple[Weights, Weights]:
    """Bounds on what the tokens outside of [R, n] weigh together at a temperature, relative to the likeliest score.

    Their sum at temperature 1, t, is the whole less the known ones. A power p = 1/T of each: at most the edge's to
    p - 1 times t for p above 1, and at most N^(1-p) t^p below (Hölder); at least the other of the two.
    """
    low, high = np.zeros(len(rows)), np.full(len(rows), np.inf)
    if not is_known.any():
        return low, high
    rows, at = rows[is_known], np.flatnonzero(is_known)
    logits, p = heads.logits[rows].astype(np.float64), 1.0 / temperature[is_known]
    top = logits.max(axis=1)
    known = np.exp(logits - top[:, None]).sum(axis=1)
    whole = np.exp(heads.log_sum_exp[rows] - top)
    edge = np.exp(heads.edge[rows].astype(np.float64) - top)
    num_others = 1 << 20  # no vocabulary is larger
    with np.errstate(over="ignore", divide="ignore", invalid="ignore", under="ignore"):
        bounds = []
        for t in (whole - known - MARGIN * whole, whole - known + MARGIN * whole):
            mass = np.maximum(t, 0.0)
            bounds.append((edge ** (p - 1.0) * mass, num_others ** (1.0 - p) * mass**p))
        (low_edge, low_power), (high_edge, high_power) = bounds
        shift = np.exp(top * p - largest[is_known])
        low[at] = np.nan_to_num(np.minimum(low_edge, low_power) * shift, nan=0.0, posinf=0.0)
        high[at] = np.nan_to_num(np.maximum(high_edge, high_power) * shift, nan=np.inf, posinf=np.inf)
    return low, high
