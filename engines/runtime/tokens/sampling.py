"""Sampling: the next token, given the logits.

Pure functions on one row of logits, float32 [vocab]. They mean what Transformers' logits processors of the
same names mean and run in the same order: repetition penalty, what `penalties` holds, suppressed tokens, temperature,
top-k, top-p, min-p, then a draw from the softmax. This is what a choice means; `choose` finds the same token from the
likeliest candidates alone, where those are enough to know it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engines.runtime.tokens.heads import head_edge
from engines.runtime.tokens.penalties import NOTHING_WRITTEN, Written, adjusted_logits, looks_back
from engines.session import EngineError
from export.checkpoint.generation_config import GenerationConfig

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely a token was, and which were the likeliest: natural logarithms of the model's own probabilities."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    """(token id, logprob), the likeliest first."""


class Chance(Protocol):
    """Where a draw comes from: a generator of NumPy's, or a number that was drawn from one."""

    def random(self) -> float:
        """At least 0 and below 1."""
        ...


class Drawn:
    """A number that was drawn already."""

    def __init__(self, number: float) -> None:
        self._number = number

    def random(self) -> float:
        """See `Chance`."""
        return self._number


def next_token(
    logits: Logits,
    seen: npt.NDArray[np.bool_],
    config: GenerationConfig,
    generator: Chance,
    written: Written = NOTHING_WRITTEN,
    allowed: npt.NDArray[np.bool_] | None = None,
) -> int:
    """Choose one token id.

    Args:
        logits: [vocab], left unchanged.
        seen: [vocab], true for every token of the prompt and of the answer so far.
        config: how to choose.
        generator: source of chance; untouched when the choice is greedy.
        written: prompt and answer so far, for what looks back at them.
        allowed: [vocab], the tokens of which one must come, whatever else is asked; None: all.

    Raises:
        EngineError: the logits hold not-a-number or infinity, or rule out every token.
    """
    scores = apply_repetition_penalty(logits, seen, config.repetition_penalty)
    if looks_back(config):
        require_finite_maximum(logits)
        scores = adjusted_logits(scores, written, config)
        require_finite_maximum(scores)
    if allowed is not None:
        require_finite_maximum(logits)
        scores = only_allowed(suppress_tokens(scores, config.suppress_tokens), logits, allowed)
        return greedy_token(scores) if config.is_greedy else _drawn_token(scores, logits, config, generator)
    if not config.is_greedy:
        require_finite_maximum(logits)
        if config.suppress_tokens:
            scores = suppress_tokens(scores, config.suppress_tokens)
            require_finite_maximum(scores)
        return _drawn_token(scores, logits, config, generator)
    token_id = greedy_token(scores)
    # The largest of values with a not-a-number among them is that one: no second pass over the logits.
    if not np.isfinite(scores[token_id]):
        require_finite_maximum(logits)
        require_finite_scores(scores)
    if token_id in config.suppress_tokens:
        scores = suppress_tokens(scores, config.suppress_tokens)
        require_finite_maximum(scores)
        token_id = greedy_token(scores)
    return token_id


def _drawn_token(scores: Logits, logits: Logits, config: GenerationConfig, generator: Chance) -> int:
    scores = apply_temperature(scores, config.temperature)
    require_finite_scores(scores)
    scores = apply_top_k(scores, config.top_k)
    scores = apply_top_p(scores, config.top_p)
    scores = apply_min_p(scores, config.min_p)
    return sample_token(scores, generator, logits)


def require_finite_maximum(logits: Logits) -> None:
    """Refuse logits that name no most likely token. One pass: the maximum of an array with a NaN is NaN.

    Raises:
        EngineError: NaN, +inf, or nothing but -inf.
    """
    if np.isfinite(logits.max()):
        return
    raise EngineError(
        f"the decoder's logits are unusable: of {logits.size} values, {int(np.isnan(logits).sum())} are not a number, "
        f"{int(np.isposinf(logits).sum())} are +inf and {int(np.isneginf(logits).sum())} are -inf. "
        "float16 overflows in this model: build the engine in bfloat16 or float32 and validate it."
    )


def require_finite_scores(scores: Logits) -> None:
    """Refuse what penalties and temperature made of logits where it names no most likely token.

    Raises:
        EngineError: NaN, +inf, or nothing but -inf.
    """
    if not np.isfinite(scores.max()):
        raise EngineError(
            f"the decoder's logits are unusable with these penalties and this temperature: of {scores.size} scores, "
            f"{int(np.isneginf(scores).sum())} are ruled out and {int((~np.isfinite(scores)).sum())} in all are no "
            "finite numbers. Ask for values nearer to 1; validate the engine if its logits are beyond 1e30."
        )


def apply_repetition_penalty(logits: Logits, seen: npt.NDArray[np.bool_], penalty: float) -> Logits:
    """Make seen tokens less likely: positive logits are divided by `penalty`, negative ones multiplied."""
    if penalty == 1.0:
        return logits
    token_ids = np.flatnonzero(seen)
    seen_logits = logits[token_ids]
    penalized = logits.copy()
    penalized[token_ids] = np.where(seen_logits < 0, seen_logits * penalty, seen_logits / penalty)
    return penalized


def suppress_tokens(logits: Logits, token_ids: Sequence[int]) -> Logits:
    """Rule out tokens; ids past the vocabulary rule out nothing."""
    ids = np.asarray(token_ids, dtype=np.int64)
    ids = ids[ids < logits.size]
    if not ids.size:
        return logits
    kept = logits.copy()
    kept[ids] = -np.inf
    return kept


def only_allowed(scores: Logits, logits: Logits, allowed: npt.NDArray[np.bool_]) -> Logits:
    """Rule out all other tokens; where nothing would be left, what ruled out the allowed ones gives way.

    Raises:
        EngineError: the model itself gives every allowed token no probability at all.
    """
    places = np.flatnonzero(allowed)  # as an index ten times as fast as the mask itself
    kept = np.full_like(scores, -np.inf)
    kept[places] = scores.take(places)
    if not np.isfinite(kept.max()):
        kept[places] = logits.take(places)
        require_finite_maximum(kept)
    return kept


def apply_temperature(logits: Logits, temperature: float) -> Logits:
    """Flatten (above 1) or sharpen (below 1) the distribution. `temperature` is positive."""
    return logits if temperature == 1.0 else logits / temperature


def apply_top_k(logits: Logits, top_k: int) -> Logits:
    """Keep the `top_k` largest logits and all that tie with the smallest of them; 0 keeps everything."""
    if top_k == 0 or top_k >= logits.size:
        return logits
    smallest_kept = np.partition(logits, -top_k)[-top_k]
    return np.where(logits < smallest_kept, np.float32(-np.inf), logits)


def apply_top_p(logits: Logits, top_p: float) -> Logits:
    """Keep the smallest set of most likely tokens whose probabilities sum to `top_p`, at least one token.

    Among equal logits at the edge the lowest ids stay, as in a greedy choice (Transformers leaves it to an
    unstable sort). Only values are sorted, not ids: 0.5 ms for 151,936 tokens where a stable argsort takes 13 ms.
    """
    if top_p >= 1.0:
        return logits
    ascending = np.sort(logits[logits > -np.inf])
    mass = np.cumsum(softmax(ascending), dtype=np.float64).astype(np.float32)
    num_removed = min(int(np.count_nonzero(mass <= np.float32(1.0 - top_p))), ascending.size - 1)
    edge = ascending[num_removed]
    kept = np.where(logits < edge, np.float32(-np.inf), logits)
    num_tied_kept = int(np.searchsorted(ascending, edge, side="right")) - num_removed
    kept[np.flatnonzero(logits == edge)[num_tied_kept:]] = -np.inf
    return kept


def apply_min_p(logits: Logits, min_p: float) -> Logits:
    """Keep tokens that are at least `min_p` times as likely as the likeliest; 0 keeps everything."""
    if min_p <= 0.0:
        return logits
    probabilities = softmax(logits)
    return np.where(probabilities < np.float32(min_p) * probabilities.max(), np.float32(-np.inf), logits)


def token_logprobs(logits: Logits, token_id: int, num_top: int) -> TokenLogprobs:
    """How likely a chosen token was before any penalty or temperature, and the `num_top` likeliest tokens."""
    wide = logits.astype(np.float64)
    log_sum = float(wide.max() + np.log(np.exp(wide - wide.max()).sum()))
    likeliest = np.argpartition(-wide, num_top - 1)[:num_top] if num_top else np.zeros(0, np.int64)
    return ordered_logprobs(
        float(wide[token_id]), likeliest.tolist(), wide[likeliest].tolist(), num_top, log_sum
    )


def ordered_logprobs(
    chosen: float, ids: Sequence[int], logits: Sequence[float], num_top: int, log_sum: float
) -> TokenLogprobs:
    """What to tell of a token with the logit `chosen`, and of the `num_top` likeliest of some tokens."""
    # Of equal logits the lowest id first, as in a greedy choice.
    ordered = sorted(zip(ids, logits, strict=True), key=lambda found: (-found[1], found[0]))
    top = tuple((token_id, logit - log_sum) for token_id, logit in ordered[:num_top])
    return TokenLogprobs(chosen - log_sum, top)


def softmax(logits: Logits) -> Logits:
    """Probabilities [vocab]; -inf becomes exactly 0."""
    weights: Logits = np.exp(logits - logits.max())
    weights /= weights.sum()
    return weights


def greedy_token(logits: Logits) -> int:
    """The most likely token; the lowest id where several tie."""
    return int(np.argmax(logits))


def sample_token(scores: Logits, generator: Chance, logits: Logits | None = None) -> int:
    """Draw one token from the softmax of `scores`, by inverting the cumulative distribution.

    float64 sums: in float32 the last of 151,936 steps would round away small probabilities. A token of
    probability 0 is never drawn: `side="right"` steps over flat stretches, and the draw stays below the last step.

    Args:
        scores: [vocab], what is left to draw from.
        generator: source of chance.
        logits: [vocab] of the engine: its likeliest tokens (`heads.head_edge`) come first in the cumulative
            distribution, both kinds by their ids, so that most draws fall among them and need no other token's logit.
            None: all by their ids.
    """
    token_ids = np.flatnonzero(scores > -np.inf)
    if logits is not None and token_ids.size > 1:
        is_head = logits[token_ids] > head_edge(logits)
        token_ids = np.concatenate([token_ids[is_head], token_ids[~is_head]])
    cumulative = np.cumsum(softmax(scores[token_ids]), dtype=np.float64)
    draw = min(generator.random() * cumulative[-1], np.nextafter(cumulative[-1], 0))
    return int(token_ids[np.searchsorted(cumulative, draw, side="right")])
