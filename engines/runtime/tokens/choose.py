"""The next tokens of several answers at once, by the likeliest candidates of each where those are enough to know them.

A choice from candidates is the one that `sampling.next_token` makes of whole logits with the same draw, or none: where
what is not known of the other tokens could change it, the row's whole logits are asked for. That is so for a token
below the candidates (a mask that allows none of them, a bias on a token not asked for), and for a sum that the others
decide (a draw or a top-p beyond the candidates' share). All rows go through each operation together.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from engines.runtime.tokens.adjust import adjusted_heads
from engines.runtime.tokens.chooser import Chooser
from engines.runtime.tokens.heads import Heads
from engines.runtime.tokens.sampling import Chance, Drawn, next_token

Logits = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_MOST_TOKENS = 1 << 20  # no vocabulary is larger
_MAX_CUTS = 4
"""How many numbers of tokens that top-p may keep are tried before whole logits are asked for."""
_NO_ID = np.iinfo(np.int64).max
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
    scores, bound = adjusted_heads(choosers, heads, allowed)
    tokens, is_decided = _decided(choosers, heads, scores, bound, draws, allowed)
    outcomes: list[Outcome] = tokens.tolist()
    for row in np.flatnonzero(~is_decided).tolist():
        logits, one = whole(row), slice(row, row + 1)
        token_id = _by_weighing(choosers[row], heads.rows(one), scores[one], logits, draws[one], allowed[row])
        outcomes[row] = (
            choose_from_logits(choosers[row], logits, Drawn(draws[row]), allowed[row])
            if token_id is None
            else token_id
        )
    return outcomes


def choose_from_logits(chooser: Chooser, logits: Logits, chance: Chance, allowed: Mask | None) -> Outcome:
    """One token from a row's whole logits [vocab]."""
    try:
        return next_token(logits, chooser.seen, chooser.config, chance, chooser.written, allowed)
    except Exception as error:  # noqa: BLE001  ends the request of this row and no other
        return error


def _by_weighing(
    chooser: Chooser, head: Heads, scores: Scores, logits: Logits, draw: Weights, allowed: Mask | None
) -> int | None:
    """A guided row's draw once the other tokens that its mask allows are weighed; None: that does not decide it.

    One pass over them: what `next_token` does to them all, sorting and filtering, takes several times as long.
    """
    config = chooser.config
    if allowed is None or chooser.is_greedy or chooser.looks_back or config.repetition_penalty != 1.0:
        return None
    is_other = allowed.copy() if chooser.suppressed is None else allowed & ~chooser.suppressed
    is_other[head.ids[head.logits > -np.inf]] = False
    rest = logits.take(np.flatnonzero(is_other))  # in a tenth of the time that a mask as index takes
    bound = rest.max(initial=-np.inf)
    largest = scores.max()
    if not (np.isfinite(largest) and bound < largest):
        return None
    temperature = np.float32(config.temperature)
    weight = np.exp((rest - largest) / temperature).sum(dtype=np.float64)
    drawing = _Draw([chooser], head, scores, np.array([bound]), [allowed], np.array([weight]))
    tokens, is_decided = drawing.tokens(draw)
    return int(tokens[0]) if is_decided[0] else None


def _num_possible(chooser: Chooser, allowed: Mask | None) -> int:
    return len(chooser.seen) if allowed is None else int(np.count_nonzero(allowed))


def _decided(
    choosers: Sequence[Chooser],
    heads: Heads,
    scores: Scores,
    bound: Scores,
    draws: Weights,
    allowed: Sequence[Mask | None],
) -> tuple[npt.NDArray[np.int64], Mask]:
    """A token for each row [R], and for which rows it is the one. Not where a logit is no finite number."""
    largest = scores.max(axis=1)
    is_decided = np.isfinite(heads.logits.max(axis=1)) & np.isfinite(largest) & (largest > bound)
    is_drawn = np.array([not chooser.is_greedy for chooser in choosers])
    best = np.zeros(len(choosers), np.int64)
    if not is_drawn.all():
        # Of equals the lowest id, wherever an engine put it.
        best = np.where(scores == largest[:, None], heads.ids, _NO_ID).min(axis=1)
    rows = np.flatnonzero(is_drawn & is_decided)
    if len(rows):
        if len(rows) < len(choosers):
            heads, scores, bound = heads.rows(rows), scores[rows], bound[rows]
        drawing = _Draw(
            [choosers[r] for r in rows.tolist()], heads, scores, bound, [allowed[r] for r in rows.tolist()]
        )
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
        scores: Scores,
        bound: Scores,
        allowed: Sequence[Mask | None],
        others: Weights | None = None,
    ) -> None:
        """Args: others: what all other tokens weigh together, [R]; None: nobody knows."""
        configs = [chooser.config for chooser in choosers]
        temperature = np.array([config.temperature for config in configs], np.float32)
        self._top_k = np.array([config.top_k for config in configs])
        self._top_p = np.array([config.top_p for config in configs])
        self._min_p = np.array([config.min_p for config in configs], np.float32).astype(np.float64)
        self._is_top_k = np.array([chooser.is_top_k for chooser in choosers])
        self._ids, self._num_top = heads.ids, heads.num_top
        with np.errstate(over="ignore", invalid="ignore"):
            self._scores = scores / temperature[:, None]
            self._bound = bound / temperature
            largest = self._scores.max(axis=1)
            self.is_decided = np.isfinite(largest) & (largest > self._bound)
            self._weights: Weights = np.exp(self._scores - largest[:, None], dtype=np.float64)
            self._bound_weight: Weights = np.exp(self._bound - largest, dtype=np.float64)
            if not self.is_decided.all():
                self._weights[~self.is_decided] = 0.0
            is_summed = np.array([chooser.needs_sum for chooser in choosers]) & ~(bound > heads.edge)
            self._low, self._high = _others(heads, temperature, largest.astype(np.float64), is_summed)
            self._low[[chooser.may_lower for chooser in choosers]] = 0.0
            # Each weighs no more than the bound: a grammar that allows few tokens leaves little to the others.
            num_others = np.array([_num_possible(*pair) for pair in zip(choosers, allowed, strict=True)])
            self._high = np.minimum(self._high, num_others * self._bound_weight)
            self._low = np.minimum(self._low, self._high)
        if others is not None:
            self._low, self._high = others * (1 - MARGIN), others * (1 + MARGIN)
        self._cuts: list[tuple[int, float]] = []  # a row, and a least weight that top-p may keep in it
        self._is_whole = self._bound == -np.inf  # nothing but the candidates is possible
        self._leave_others_out(self._is_whole)

    def tokens(self, draws: Weights) -> tuple[npt.NDArray[np.int64], Mask]:
        """A token for each row [R], and for which rows it is the one that whole logits give."""
        if self._is_top_k.any():
            self._apply_top_k()
        if (self._top_p < 1.0).any():
            self._apply_top_p()
        if (self._min_p > 0.0).any():
            self._apply_min_p()
        found, is_known = _drawn(self._ids, self._num_top, self._weights, self._low, self._high, draws)
        is_decided = self.is_decided & is_known
        if self._cuts:
            self._try_cuts(found, is_decided, draws)
        return found, is_decided

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
        ordered = np.sort(self._weights, axis=1)[:, ::-1]
        upto = np.cumsum(ordered, axis=1)
        known, width = upto[:, -1], ordered.shape[1]
        # A token stays where those before it weigh less than the share, the first one always.
        with np.errstate(over="ignore", invalid="ignore"):
            fewest = 1 + _leading(upto < ((known + self._low) * (self._top_p - MARGIN))[:, None])
            most = 1 + _leading(upto < ((known + self._high) * (self._top_p + MARGIN))[:, None])
        # Beyond all that are known: the likeliest of the others has to stay too, and nobody knows it.
        is_beyond = fewest > width
        edge = ordered[np.arange(len(ordered)), np.where(is_beyond, 1, fewest) - 1]
        # The bound itself may be another token's score.
        is_known = (fewest == most) & ~is_beyond & ((edge > self._bound_weight) | (self._high == 0.0))
        kept = (self._weights >= edge[:, None]) & (edge > 0)[:, None]
        num_surplus = np.where(is_filtered & is_known, kept.sum(axis=1) - fewest, 0)
        for r in np.flatnonzero(num_surplus > 0):
            # Of equals at the edge the lowest ids stay.
            (places,) = np.nonzero(self._weights[r] == edge[r])
            kept[r, places[np.argsort(-self._ids[r, places])[: num_surplus[r]]]] = False
        for row in np.flatnonzero(self.is_decided & is_filtered & ~is_known & (most <= width)).tolist():
            cuts = self._possible_cuts(row, ordered[row], int(fewest[row]), int(most[row]))
            if cuts:
                self._cuts += [(row, cut) for cut in cuts]
                kept[row], is_known[row] = self._weights[row] >= cuts[-1], True
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

    def _possible_cuts(self, row: int, ordered: Weights, fewest: int, most: int) -> list[float]:
        """The least weight that a row keeps for each number of tokens that top-p may keep; none where they are many,
        or where a number does not say which tokens.
        """
        if most - fewest >= _MAX_CUTS or ordered[most - 1] <= self._bound_weight[row]:
            return []
        following = np.append(ordered, 0.0)[fewest : most + 1]
        cuts = ordered[fewest - 1 : most]
        return [] if (cuts == following).any() else cuts.tolist()

    def _try_cuts(self, found: npt.NDArray[np.int64], is_decided: Mask, draws: Weights) -> None:
        """A row whose top-p keeps one of some numbers of tokens is decided where all of them give the same token."""
        rows = np.array([r for r, _ in self._cuts])
        cuts = np.array([cut for _, cut in self._cuts])[:, None]
        weights = np.where(self._weights[rows] >= cuts, self._weights[rows], 0.0)
        none = np.zeros(len(rows))
        tokens, is_known = _drawn(self._ids[rows], self._num_top, weights, none, none, draws[rows])
        is_decided[rows[~is_known | (tokens != found[rows])]] = False


def _drawn(
    ids: npt.NDArray[np.int64], num_top: int, weights: Weights, low: Weights, high: Weights, draws: Weights
) -> tuple[npt.NDArray[np.int64], Mask]:
    """A token for each row, and where it is the one whatever the others weigh between `low` and `high`."""
    # A number's lower bits say where it came from: values are sorted faster than places are.
    width = ids.shape[1]
    bits = width.bit_length()
    keys = (ids << bits) + np.arange(width)
    keys[:, num_top:] += 1 << 60  # what was asked for comes behind the head
    keys.sort(axis=1)
    order = keys & ((1 << bits) - 1)
    rows = np.arange(len(order))
    cumulative = np.cumsum(weights.ravel().take(order + (rows * width)[:, None]), axis=1)
    known = cumulative[:, -1]
    with np.errstate(over="ignore", invalid="ignore"):
        first = _leading(cumulative <= ((known + low) * (draws - MARGIN))[:, None])
        last = _leading(cumulative <= ((known + high) * (draws + MARGIN))[:, None])
    place = order[rows, np.minimum(first, width - 1)]
    # Where others are left, they come after the head, and between those that were asked for.
    is_known = (first == last) & (first < width) & ((high == 0.0) | (place < num_top))
    return ids[rows, place], is_known


def _leading(found: Mask) -> npt.NDArray[np.int64]:
    """How many true ones each row begins with; all others are false."""
    counts: npt.NDArray[np.int64] = np.where(found[:, -1], found.shape[1], found.argmin(axis=1))
    return counts


def _others(heads: Heads, temperature: Scores, largest: Weights, is_known: Mask) -> tuple[Weights, Weights]:
    """Bounds on what the tokens outside of [R, n] weigh together at a temperature, relative to the likeliest score.

    Their sum at temperature 1, t, is the whole less the known ones. A power p = 1/T of each: at most the edge's to
    p - 1 times t for p above 1, and at most N^(1-p) t^p below (Hölder); at least the other of the two.
    """
    low, high = np.zeros(len(largest)), np.full(len(largest), np.inf)
    if not is_known.any():
        return low, high
    top, p = heads.logits.max(axis=1), 1.0 / temperature.astype(np.float64)
    known = np.exp(heads.logits - top[:, None], dtype=np.float64).sum(axis=1)
    whole, edge = np.exp(heads.log_sum_exp - top), np.exp(heads.edge - top, dtype=np.float64)
    least, most = np.maximum((whole - known) + np.array([[-MARGIN], [MARGIN]]) * whole, 0.0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore", under="ignore"):
        edge_power, number_power = edge ** (p - 1.0), float(_MOST_TOKENS) ** (1.0 - p)
        shift = np.exp(top * p - largest)
        least = np.minimum(edge_power * least, number_power * least**p) * shift
        most = np.maximum(edge_power * most, number_power * most**p) * shift
    # What is no number bounds nothing.
    low[is_known] = np.where(np.isfinite(least), least, 0.0)[is_known]
    high[is_known] = np.where(np.isnan(most), np.inf, most)[is_known]
    return low, high
