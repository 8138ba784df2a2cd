import math
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engines.runtime.tokens.sampling import (
    apply_repetition_penalty,
    apply_temperature,
    apply_top_k,
    apply_top_p,
    greedy_token,
    next_token,
    sample_token,
    softmax,
    suppress_tokens,
)
from engines.session import EngineError
from export.checkpoint.generation_config import GenerationConfig

VOCAB = 1000
SEEDS = range(20)


def random_logits(seed: int, vocab: int = VOCAB) -> np.ndarray:
    """A third of the seeds with many ties, a third with -inf among them."""
    logits = np.random.default_rng(seed).normal(0, 4, vocab).astype(np.float32)
    if seed % 3 == 1:
        logits = np.round(logits)
    if seed % 3 == 2:
        logits[::3] = -np.inf
    return logits


def transformers_scores(processor, logits: np.ndarray, token_ids: list[int]) -> np.ndarray:
    torch = pytest.importorskip("torch")
    scores = torch.from_numpy(logits.copy())[None]
    return processor(torch.tensor([token_ids]), scores)[0].numpy()


@pytest.fixture(scope="module")
def processors():
    return pytest.importorskip("transformers.generation.logits_process")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("penalty", [0.5, 1.05, 2.0])
def test_repetition_penalty_equals_transformers(processors, seed, penalty):
    logits = random_logits(seed)
    token_ids = np.random.default_rng(seed).integers(0, VOCAB, 50).tolist()
    expected = transformers_scores(processors.RepetitionPenaltyLogitsProcessor(penalty), logits, token_ids)
    seen = np.isin(np.arange(VOCAB), token_ids)
    np.testing.assert_array_equal(apply_repetition_penalty(logits, seen, penalty), expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("token_ids", [[3], [0, 5, VOCAB - 1], list(range(900, VOCAB))])
def test_suppression_equals_transformers(processors, seed, token_ids):
    logits = random_logits(seed)
    expected = transformers_scores(processors.SuppressTokensLogitsProcessor(token_ids), logits, [0])
    np.testing.assert_array_equal(suppress_tokens(logits, token_ids), expected)


def test_ids_past_the_vocabulary_rule_out_nothing():
    logits = random_logits(0)
    assert suppress_tokens(logits, (VOCAB, 10**12)) is logits


@pytest.mark.parametrize(
    "how", [{}, {"do_sample": True, "top_k": 5}, {"do_sample": True, "temperature": 90.0, "top_k": 0}]
)
def test_a_suppressed_token_is_never_chosen(how):
    suppressed = tuple(range(0, VOCAB, 2))
    config = GenerationConfig(suppress_tokens=suppressed, **how)
    generator = np.random.default_rng(0)
    for seed in SEEDS:
        logits = random_logits(seed)
        logits[list(suppressed)] += 50
        assert next_token(logits, np.zeros(VOCAB, bool), config, generator) % 2 == 1


@pytest.mark.parametrize("do_sample", [False, True])
def test_suppression_that_leaves_no_token_is_an_error(do_sample):
    config = GenerationConfig(suppress_tokens=tuple(range(VOCAB)), do_sample=do_sample)
    with pytest.raises(EngineError, match="unusable"):
        next_token(random_logits(0), np.zeros(VOCAB, bool), config, np.random.default_rng(0))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [0.01, 0.7, 1.0, 3.0])
def test_temperature_equals_transformers(processors, seed, temperature):
    logits = random_logits(seed)
    expected = transformers_scores(processors.TemperatureLogitsWarper(temperature), logits, [0])
    np.testing.assert_allclose(apply_temperature(logits, temperature), expected, rtol=2e-7)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("top_k", [1, 2, 50, VOCAB - 1, VOCAB, VOCAB + 1])
def test_top_k_equals_transformers_ties_included(processors, seed, top_k):
    logits = random_logits(seed)
    expected = transformers_scores(processors.TopKLogitsWarper(top_k), logits, [0])
    np.testing.assert_array_equal(apply_top_k(logits, top_k), expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("top_p", [0.0, 0.001, 0.5, 0.9, 0.999])
def test_top_p_equals_transformers_up_to_which_of_equals_stay(processors, seed, top_p):
    logits = random_logits(seed)
    expected = transformers_scores(processors.TopPLogitsWarper(top_p), logits, [0])
    kept = apply_top_p(logits, top_p)
    np.testing.assert_array_equal(np.sort(kept), np.sort(expected))
    np.testing.assert_array_equal(np.isin(kept, expected), True)
    edge = expected[np.isfinite(expected)].min()
    np.testing.assert_array_equal(kept[logits != edge], expected[logits != edge])
    tied_ids = np.flatnonzero(logits == edge)
    num_kept = np.count_nonzero(expected == edge)
    assert np.flatnonzero(kept == edge).tolist() == tied_ids[:num_kept].tolist()


@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.25, 0.5, 0.74, 0.75, 0.76, 0.9, 1 - 1e-9])
@pytest.mark.parametrize("num_equal", [1, 2, 4, 8])
def test_top_p_equals_transformers_where_the_sum_meets_the_edge_exactly(processors, num_equal, top_p):
    logits = np.zeros(num_equal, np.float32)
    expected = transformers_scores(processors.TopPLogitsWarper(top_p), logits, [0])
    assert np.isfinite(apply_top_p(logits, top_p)).sum() == np.isfinite(expected).sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_whole_chain_equals_that_of_transformers_generate(processors, seed):
    pytest.importorskip("torch")
    from transformers import GenerationConfig as TransformersConfig
    from transformers.generation.utils import GenerationMixin

    class Model(GenerationMixin):
        config = SimpleNamespace(is_encoder_decoder=False)

    settings: dict[str, Any] = {"temperature": 0.6, "top_k": 40, "top_p": 0.85, "repetition_penalty": 1.3}
    settings["do_sample"] = True
    their_config = TransformersConfig(num_beams=1, **settings)
    # No ties: which of equals stay is Transformers' accident.
    logits, token_ids = random_logits(3 * seed), list(range(0, VOCAB, 7))
    their_chain = Model()._get_logits_processor(their_config, len(token_ids))  # type: ignore[misc]
    probabilities = softmax(transformers_scores(their_chain, logits, token_ids))
    seen = np.isin(np.arange(VOCAB), token_ids)
    config = GenerationConfig(**settings)
    draws = np.random.default_rng(seed).random(50)
    cumulative = np.cumsum(probabilities, dtype=np.float64)
    for draw in draws:
        expected = int(np.searchsorted(cumulative, draw * cumulative[-1], side="right"))
        assert next_token(logits, seen, config, _Fixed(draw)) == expected


class _Fixed(np.random.Generator):
    """A generator whose next draw is known."""

    def __init__(self, draw: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.draw = draw

    def random(self, *_args: object, **_options: object) -> float:  # type: ignore[override]
        return self.draw


finite_logits = hnp.arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.floats(-30, 30, width=32) | st.sampled_from([0.0, 1.0, -math.inf]),
).filter(lambda logits: bool(np.isfinite(logits.max())))


@given(logits=finite_logits, top_k=st.integers(1, 70))
def test_top_k_keeps_the_largest_and_their_ties_only(logits, top_k):
    kept = np.isfinite(apply_top_k(logits, top_k))
    num_finite = int(np.isfinite(logits).sum())
    assert kept.sum() >= min(top_k, num_finite)
    if kept.any() and not kept.all():
        assert logits[kept].min() > logits[~kept].max()
        assert np.count_nonzero(logits > logits[kept].min()) < top_k


@given(logits=finite_logits, top_p=st.floats(0, 1))
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(logits, top_p):
    kept = np.isfinite(apply_top_p(logits, top_p))
    probabilities = softmax(logits)
    assert kept[logits == logits.max()].any()
    assert probabilities[kept].sum() >= top_p - 1e-5
    assert probabilities[kept].sum() - probabilities[kept].min() <= top_p + 1e-5
    if kept.any() and not kept.all():
        assert logits[kept].min() >= logits[~kept].max()


@given(logits=finite_logits, seed=st.integers(0, 1000))
def test_an_impossible_token_is_never_drawn(logits, seed):
    assert np.isfinite(logits[sample_token(logits, np.random.default_rng(seed))])


@pytest.mark.parametrize("draw", [0.0, 0.5, np.nextafter(1.0, 0.0), 1.0])
def test_the_ends_of_the_draw_hit_possible_tokens(draw):
    logits = np.array([-np.inf, 1.0, -np.inf, 1.0, -np.inf], np.float32)
    assert sample_token(logits, _Fixed(draw)) in (1, 3)
    underflowing = np.array([-1000.0, 1.0, -1000.0, 1.0, -1000.0], np.float32)
    assert sample_token(underflowing, _Fixed(draw)) in (1, 3)


def test_draws_follow_the_softmax():
    logits = np.log(np.array([0.5, 0.3, 0.2, 1e-9], np.float32))
    generator = np.random.default_rng(0)
    counts = np.bincount([sample_token(logits, generator) for _ in range(20_000)], minlength=4)
    # Four standard deviations of a count of 20,000 are at most 4 * sqrt(20000 / 4) = 283.
    np.testing.assert_allclose(counts, [10_000, 6_000, 4_000, 0], atol=283)


def test_greedy_takes_the_lowest_id_of_equals():
    assert greedy_token(np.array([0, 3, 1, 3, 3], np.float32)) == 1


@pytest.mark.parametrize("temperature", [0, 1e-6])
def test_temperature_zero_is_greedy_and_draws_nothing(temperature):
    logits = random_logits(0)
    config = GenerationConfig(do_sample=True, temperature=temperature)
    generator = np.random.default_rng(4)
    token_id = next_token(logits, np.zeros(VOCAB, np.bool_), config, generator)
    assert token_id == int(np.argmax(logits))
    assert generator.random() == np.random.default_rng(4).random()


def test_the_repetition_penalty_applies_to_greedy_choices_too():
    logits = np.array([1.0, 1.1], np.float32)
    seen = np.array([False, True])
    assert next_token(logits, seen, GenerationConfig(repetition_penalty=1.2), np.random.default_rng(0)) == 0


def test_logits_are_left_as_they_were():
    logits = random_logits(2)
    before = logits.copy()
    config = GenerationConfig(do_sample=True, temperature=0.5, top_k=20, top_p=0.8, repetition_penalty=1.5)
    next_token(logits, np.ones(VOCAB, np.bool_), config, np.random.default_rng(0))
    np.testing.assert_array_equal(logits, before)


def test_the_smallest_temperature_that_samples_does_not_overflow():
    logits = np.array([-1e30, 3e30, 1e30], np.float32)
    config = GenerationConfig(do_sample=True, temperature=1e-5, top_p=0.5)
    assert next_token(logits, np.zeros(3, np.bool_), config, np.random.default_rng(0)) == 1


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ([1.0, math.nan, 2.0], "1 are not a number"),
        ([1.0, math.inf, math.inf], r"2 are \+inf"),
        ([-math.inf] * 3, "3 are -inf"),
    ],
)
@pytest.mark.parametrize("do_sample", [True, False])
def test_logits_without_a_finite_maximum_are_the_engines_fault(bad, told, do_sample):
    with pytest.raises(EngineError, match=told):
        next_token(
            np.array(bad, np.float32),
            np.zeros(3, np.bool_),
            GenerationConfig(do_sample=do_sample),
            np.random.default_rng(0),
        )


EXTREMES = [-np.inf, -3e38, -1e31, -1.0, 0.0, 1e-30, 1.0, 1e31, 3e38]


@pytest.mark.filterwarnings("ignore:overflow")
@given(
    logits=st.lists(st.sampled_from(EXTREMES), min_size=4, max_size=12),
    penalty=st.sampled_from([0.01, 1.0, 100.0]),
    temperature=st.sampled_from([0.01, 1.0, 100.0]),
    how=st.sampled_from([{}, {"top_k": 2}, {"top_p": 0.5}, {"top_k": 3, "top_p": 0.01}, {"min_p": 0.5}]),
    do_sample=st.booleans(),
)
def test_extreme_scores_give_a_token_that_is_not_ruled_out_or_the_engines_error(
    logits, penalty, temperature, how, do_sample
):
    row = np.array(logits, np.float32)
    config = GenerationConfig(repetition_penalty=penalty, temperature=temperature, do_sample=do_sample, **how)
    seen = np.arange(len(row)) % 2 == 0
    with suppress(EngineError):
        token_id = next_token(row, seen, config, np.random.default_rng(0))
        assert row[token_id] > -np.inf


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("do_sample", [False, True])
def test_penalties_that_rule_out_every_token_are_an_error_that_names_them(do_sample):
    logits = np.full(VOCAB, -1e38, np.float32)
    config = GenerationConfig(repetition_penalty=100.0, do_sample=do_sample)
    with pytest.raises(EngineError, match="unusable with these penalties"):
        next_token(logits, np.ones(VOCAB, bool), config, np.random.default_rng(0))
