"""Candidates choose what whole logits choose with the same draw, or say that they cannot know."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.runtime.tokens import choose
from engines.runtime.tokens.chooser import Chooser
from engines.runtime.tokens.heads import head_edge, heads_of, log_sum_exp
from engines.runtime.tokens.sampling import next_token, token_logprobs
from engines.runtime.tokens.step_logits import CandidateLogits, WholeLogits
from engines.session import Candidates, EngineError
from export.checkpoint.generation_config import GenerationConfig
from export.contract import NUM_CANDIDATES

VOCAB = 1000
NUM_STEPS = {"candidates": 10_000, "whole": 4_000}


class Guide:
    """Allows what it is told to."""

    is_over = False

    def __init__(self, allowed: np.ndarray) -> None:
        self._allowed = allowed

    def begin(self, guides: object) -> None:
        pass

    def allowed(self) -> np.ndarray:
        return self._allowed

    def accept(self, token_id: int) -> None:
        pass


class Device:
    """What an engine that gives candidates says of logits [B, vocab], equals in an order of its own."""

    def __init__(self, logits: np.ndarray, asked_ids: np.ndarray, random: np.random.Generator) -> None:
        self.logits, self.num_whole = logits, 0
        shuffled = random.permutation(logits.shape[1])
        order = shuffled[np.argsort(-logits[:, shuffled], axis=1, kind="stable")[:, :NUM_CANDIDATES]]
        top = logits.max(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            sums = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
        self.candidates = Candidates(
            np.take_along_axis(logits, order, axis=1)[:, None],
            order[:, None],
            sums[:, None],
            np.take_along_axis(logits, np.maximum(asked_ids, 0), axis=1)[:, None],
            self.whole,
        )

    def whole(self, row: int) -> np.ndarray:
        self.num_whole += 1
        return self.logits[row][None]


def random_logits(random: np.random.Generator, vocab: int = VOCAB) -> np.ndarray:
    """Peaked and flat ones, with ties as bfloat16 has them, with impossible tokens, and all alike."""
    spread = random.choice([0.0, 0.3, 2.0, 5.0, 12.0])
    logits = random.normal(random.choice([-20.0, 0.0, 15.0]), spread, vocab).astype(np.float32)
    kind = random.integers(6)
    if kind == 1:
        logits = (logits.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    elif kind == 2:
        logits[random.random(vocab) < 0.97] = -np.inf
    elif kind == 3:
        logits[random.integers(0, vocab, 3)] += np.float32(30)
    elif kind == 4:
        logits = np.round(logits)
    if not np.isfinite(logits.max()):
        logits[5] = 1.0
    return logits


def random_config(random: np.random.Generator) -> GenerationConfig:
    def maybe(value: float, otherwise: float) -> float:
        return value if random.random() < 0.3 else otherwise

    ids = random.choice(VOCAB, 5, replace=False).tolist()
    return GenerationConfig(
        do_sample=bool(random.random() < 0.85),
        temperature=float(random.choice([1.0, 1.0, 0.3, 0.8, 1.7])),
        top_k=int(random.choice([0, 0, 1, 5, 50, 255, 256, 400])),
        top_p=float(maybe(random.choice([0.0, 0.1, 0.5, 0.9, 0.999]), 1.0)),
        min_p=float(maybe(random.choice([0.01, 0.1, 1.0]), 0.0)),
        repetition_penalty=float(maybe(random.choice([0.7, 1.05, 1.5]), 1.0)),
        presence_penalty=float(maybe(random.choice([-1.5, 0.5, 2.0]), 0.0)),
        frequency_penalty=float(maybe(random.choice([-0.5, 0.3]), 0.0)),
        logit_bias=tuple((token_id, float(random.choice([-100, -2, 3, 100]))) for token_id in ids)
        if random.random() < 0.2
        else (),
        no_repeat_ngram_size=int(maybe(2, 0)),
        min_new_tokens=int(maybe(4, 0)),
        eos_token_ids=(3, 9),
        suppress_tokens=tuple(range(VOCAB - 30, VOCAB)) if random.random() < 0.5 else (),
    )


def random_guide(random: np.random.Generator) -> Guide | None:
    if random.random() < 0.7:
        return None
    allowed = np.zeros(VOCAB, np.bool_)
    allowed[random.integers(0, VOCAB, random.choice([1, 20, 500]))] = True
    return Guide(allowed)


def expected_token(chooser: Chooser, logits: np.ndarray) -> int | str:
    """By the definition, with the draw that the chooser is about to make."""
    state = chooser.generator.bit_generator.state
    try:
        return next_token(
            logits, chooser.seen, chooser.config, chooser.generator, chooser.written, chooser.allowed()
        )
    except EngineError as error:
        return str(error)
    finally:
        chooser.generator.bit_generator.state = state


def answer(random: np.random.Generator, seed: int) -> Chooser:
    """A chooser with a prompt and a short answer that repeats itself."""
    config, written = random_config(random), list[int]()
    chooser = Chooser(config, random.integers(0, VOCAB, 30), written, VOCAB, seed, random_guide(random))
    for token_id in random.integers(0, 40, random.integers(0, 12)).tolist():
        written.append(token_id)
        chooser.note(token_id)
    return chooser


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["whole", "candidates"])
def test_ten_thousand_steps_choose_the_token_that_whole_logits_choose_or_ask_for_them(kind):
    random, num_steps, num_whole, num_rows = np.random.default_rng(7), 0, 0, 8
    while num_steps < NUM_STEPS[kind]:
        choosers = [answer(random, seed=num_steps + row) for row in range(num_rows)]
        logits = np.stack([random_logits(random) for _ in choosers])
        expected = [expected_token(chooser, row) for chooser, row in zip(choosers, logits, strict=True)]
        if kind == "whole":
            found = WholeLogits(logits).choose(range(num_rows), choosers)
        else:
            asked_ids = np.full((num_rows, 8), -1)
            for row, chooser in enumerate(choosers):
                asked_ids[row, : len(chooser.asked_ids)] = chooser.asked_ids
            device = Device(logits, asked_ids, random)
            # In any order: running answers are not sorted by their slots.
            order = random.permutation(num_rows).tolist()
            step = CandidateLogits(device.candidates, asked_ids)
            chosen = step.choose(order, [choosers[row] for row in order])
            found = [chosen[order.index(row)] for row in range(num_rows)]
            num_whole += device.num_whole
        assert [str(one) if isinstance(one, Exception) else one for one in found] == expected
        num_steps += num_rows
    # Most of these rows are made so that other tokens matter; where they do not, they must not be asked for.
    assert num_whole < 0.6 * num_steps


@pytest.mark.parametrize(
    ("how", "most"),
    [
        ({"do_sample": False}, 0.0),
        ({"do_sample": False, "repetition_penalty": 1.05}, 0.0),
        ({"do_sample": False, "presence_penalty": 0.5, "frequency_penalty": 0.2}, 0.0),
        ({"do_sample": True, "top_k": 50}, 0.002),
        ({"do_sample": True, "top_k": 20, "top_p": 0.8, "temperature": 0.7}, 0.002),
        ({"do_sample": True, "top_k": 0, "top_p": 0.9}, 0.005),
        ({"do_sample": True, "top_k": 0, "min_p": 0.05}, 0.002),
        ({"do_sample": True, "top_k": 0, "temperature": 0.7}, 0.01),
        ({"do_sample": True, "top_k": 0}, 0.03),
        ({"do_sample": True, "top_k": 0, "logit_bias": ((7, -100.0), (8, 2.0))}, 0.03),
    ],
)
def test_the_usual_settings_seldom_need_whole_logits(how, most):
    """Of logits spread as a language model's: a likely few, and a long tail."""
    random, num_whole, num_steps = np.random.default_rng(3), 0, 1200
    config = GenerationConfig(**how)
    for step in range(0, num_steps, 8):
        choosers = [Chooser(config, np.arange(20), [], VOCAB, step + row, None) for row in range(8)]
        logits = random.normal(0, 2, (8, VOCAB)).astype(np.float32)
        logits[:, :12] += random.uniform(6, 14, (8, 12)).astype(np.float32)
        asked_ids = np.array([[7, 8]] * 8)
        device = Device(logits, asked_ids, random)
        CandidateLogits(device.candidates, asked_ids).choose(range(8), choosers)
        num_whole += device.num_whole
    assert num_whole <= most * num_steps


def test_a_guided_draw_weighs_what_its_mask_allows_and_does_not_sort_it(monkeypatch):
    random, config = np.random.default_rng(5), GenerationConfig(do_sample=True, top_k=0, top_p=0.9)
    sorted_rows = []
    by_sorting = choose.choose_from_logits

    def counting(*given):
        sorted_rows.append(given)
        return by_sorting(*given)

    monkeypatch.setattr(choose, "choose_from_logits", counting)
    monkeypatch.setattr(choose, "_MAX_CUTS", 0)  # so that many rows ask for whole logits
    num_whole = 0
    for step in range(0, 800, 8):
        guides = [Guide(random.random(VOCAB) < 0.6) for _ in range(8)]
        choosers = [
            Chooser(config, np.arange(9), [], VOCAB, step + i, guide) for i, guide in enumerate(guides)
        ]
        logits = random.normal(0, 2, (8, VOCAB)).astype(np.float32)
        logits[:, :40] += random.uniform(4, 9, (8, 40)).astype(np.float32)
        expected = [expected_token(chooser, row) for chooser, row in zip(choosers, logits, strict=True)]
        asked_ids = np.full((8, 1), -1)
        device = Device(logits, asked_ids, random)
        assert CandidateLogits(device.candidates, asked_ids).choose(range(8), choosers) == expected
        num_whole += device.num_whole
    assert num_whole > 100
    assert len(sorted_rows) <= 0.05 * num_whole


def test_a_draw_in_a_form_seldom_needs_whole_logits():
    """Top-p keeps one token more or fewer by what the others weigh, which nobody knows: mostly the draw is the same."""
    random, num_whole, num_steps = np.random.default_rng(3), 0, 800
    config = GenerationConfig(do_sample=True, top_k=0, top_p=0.9)
    asked_ids = np.full((8, 1), -1)
    for step in range(0, num_steps, 8):
        allowed = random.random((8, VOCAB)) < 0.4
        choosers = [
            Chooser(config, np.arange(20), [], VOCAB, step + row, Guide(allowed[row])) for row in range(8)
        ]
        logits = random.normal(0, 1.5, (8, VOCAB)).astype(np.float32)
        logits[:, :12] += random.uniform(7, 11, (8, 12)).astype(np.float32)
        device = Device(logits, asked_ids, random)
        expected = [expected_token(chooser, row) for chooser, row in zip(choosers, logits, strict=True)]
        assert CandidateLogits(device.candidates, asked_ids).choose(range(8), choosers) == expected
        num_whole += device.num_whole
    assert num_whole <= 0.1 * num_steps


@given(seed=st.integers(0, 10**9), vocab=st.sampled_from([1, 5, 255, 256, 257, 300, 16_700, 20_001]))
@settings(max_examples=60, deadline=None)
def test_a_head_is_what_lies_above_the_256th_largest(seed, vocab):
    logits = random_logits(np.random.default_rng(seed), max(vocab, 6))[:vocab]
    if not np.isfinite(logits.max()):
        logits[0] = 0.0
    heads = heads_of([logits], [np.zeros(0, np.int64)], [True])
    edge = np.sort(logits)[-NUM_CANDIDATES] if vocab > NUM_CANDIDATES else -np.inf
    assert head_edge(logits) == heads.edge[0] == edge
    assert heads.ids[0, heads.logits[0] > -np.inf].tolist() == np.flatnonzero(logits > edge).tolist()
    assert heads.log_sum_exp[0] == pytest.approx(log_sum_exp(logits.astype(np.float64)), abs=2e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("how", [{}, {"do_sample": True}])
def test_a_row_of_no_numbers_is_an_error_of_that_row_alone(bad, how):
    logits = np.random.default_rng(0).normal(0, 1, (2, VOCAB)).astype(np.float32)
    logits[0, 77] = bad
    asked_ids = np.full((2, 1), -1)
    config = GenerationConfig(**how)
    for step in (
        WholeLogits(logits),
        CandidateLogits(Device(logits, asked_ids, np.random.default_rng(0)).candidates, asked_ids),
    ):
        choosers = [Chooser(config, np.arange(3), [], VOCAB, 1, None) for _ in range(2)]
        error, token_id = step.choose([0, 1], choosers)
        assert isinstance(error, EngineError)
        assert isinstance(token_id, int)


def test_a_grammar_that_fails_ends_its_own_row():
    broken = SimpleNamespace(allowed=lambda: (_ for _ in ()).throw(RuntimeError("ran into a bound")))
    logits = np.random.default_rng(0).normal(0, 1, (2, VOCAB)).astype(np.float32)
    asked_ids = np.full((2, 1), -1)
    for step in (
        WholeLogits(logits),
        CandidateLogits(Device(logits, asked_ids, np.random.default_rng(0)).candidates, asked_ids),
    ):
        choosers = [
            Chooser(GenerationConfig(), np.arange(3), [], VOCAB, 1, guide) for guide in (broken, None)
        ]
        error, token_id = step.choose([0, 1], choosers)
        assert isinstance(error, RuntimeError)
        assert token_id == logits[1].argmax()


@pytest.mark.parametrize("num_top", [0, 5, 300])
def test_logprobs_of_candidates_are_those_of_whole_logits(num_top):
    random = np.random.default_rng(1)
    logits = random.normal(0, 4, (3, VOCAB)).astype(np.float32)
    asked_ids = np.full((3, 1), -1)
    step = CandidateLogits(Device(logits, asked_ids, random).candidates, asked_ids)
    for row, rank in enumerate((0, 20, 600)):  # the last is no candidate
        token_id = int(np.argsort(-logits[row])[rank])
        found, expected = (
            step.logprobs(row, token_id, num_top),
            token_logprobs(logits[row], token_id, num_top),
        )
        assert found.logprob == pytest.approx(expected.logprob, abs=4e-6)
        assert [token for token, _ in found.top] == [token for token, _ in expected.top]
        assert [value for _, value in found.top] == pytest.approx(
            [value for _, value in expected.top], abs=4e-6
        )
