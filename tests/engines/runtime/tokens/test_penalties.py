import numpy as np
import pytest

from engines.runtime.tokens.penalties import Written, adjusted_logits, looks_back, repeating_tokens
from engines.runtime.tokens.sampling import apply_min_p, next_token, softmax, token_logprobs
from engines.session import EngineError
from export.checkpoint.generation_config import (
    GenerationConfig,
    generation_config_from_json,
    override_generation_config,
)
from export.errors import UserError

VOCAB = 60


def random_logits(seed):
    return np.random.default_rng(seed).normal(0, 3, VOCAB).astype(np.float32)


def written(seed, prompt=30, answer=20, kinds=6):
    """Few kinds of tokens, so that runs come again."""
    tokens = np.random.default_rng(seed).integers(0, kinds, prompt + answer)
    return Written(tokens[:prompt], tokens[prompt:].tolist())


@pytest.fixture(scope="module")
def processors():
    return pytest.importorskip("transformers.generation.logits_process")


def of_transformers(processor, logits, before):
    torch = pytest.importorskip("torch")
    token_ids = torch.tensor([[*before.prompt.tolist(), *before.answer]])
    return processor(token_ids, torch.from_numpy(logits.copy())[None])[0].numpy()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_no_run_of_tokens_comes_twice_as_in_transformers(processors, seed, size):
    logits, before = random_logits(seed), written(seed)
    expected = of_transformers(processors.NoRepeatNGramLogitsProcessor(size), logits, before)
    config = GenerationConfig(no_repeat_ngram_size=size)
    np.testing.assert_array_equal(adjusted_logits(logits, before, config), expected)


@pytest.mark.parametrize("length", [0, 1, 2])
def test_what_is_shorter_than_a_run_repeats_none(length):
    assert repeating_tokens(Written(np.arange(length), []), 4) == []


@pytest.mark.parametrize("num_written", [0, 3, 4, 5])
def test_an_answer_does_not_end_before_its_least_length_as_in_transformers(processors, num_written):
    logits, before = random_logits(0), written(0, answer=num_written)
    processor = processors.MinNewTokensLengthLogitsProcessor(30, 4, [7, 9], device="cpu")
    config = GenerationConfig(min_new_tokens=4, eos_token_ids=(7, 9))
    expected = of_transformers(processor, logits, before)
    np.testing.assert_array_equal(adjusted_logits(logits, before, config), expected)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("min_p", [0.05, 0.3, 1.0])
def test_min_p_equals_transformers(processors, seed, min_p):
    logits = random_logits(seed)
    logits[seed::5] = -np.inf
    expected = of_transformers(processors.MinPLogitsWarper(min_p), logits, written(seed))
    np.testing.assert_array_equal(apply_min_p(logits, min_p), expected)


def test_penalties_look_at_the_answer_alone_and_count_it():
    logits = np.zeros(VOCAB, np.float32)
    before = Written(np.array([5, 5]), [3, 4, 3, 3])
    config = GenerationConfig(presence_penalty=0.5, frequency_penalty=0.25)
    expected = np.zeros(VOCAB, np.float32)
    expected[3], expected[4] = -(0.5 + 3 * 0.25), -(0.5 + 0.25)
    np.testing.assert_array_equal(adjusted_logits(logits, before, config), expected)


def test_a_bias_lifts_or_forbids_a_token_in_a_greedy_choice_too():
    logits = random_logits(1)
    best = int(logits.argmax())
    seen, generator = np.zeros(VOCAB, bool), np.random.default_rng(0)
    forbidden = override_generation_config(GenerationConfig(), logit_bias={best: -100.0, VOCAB + 5: 3.0})
    assert next_token(logits, seen, forbidden, generator) != best
    lifted = override_generation_config(GenerationConfig(), logit_bias={17: 100.0})
    assert next_token(logits, seen, lifted, generator) == 17


def test_ruling_out_every_token_is_an_error_and_not_a_token():
    config = GenerationConfig(no_repeat_ngram_size=1)
    before = Written(np.arange(VOCAB), [])
    with pytest.raises(EngineError, match="unusable"):
        next_token(random_logits(0), np.zeros(VOCAB, bool), config, np.random.default_rng(0), before)


def test_settings_that_change_nothing_cost_nothing():
    assert not looks_back(GenerationConfig(repetition_penalty=1.3, top_p=0.5, num_logprobs=3))


def test_logprobs_are_the_models_own_and_the_likeliest_come_first():
    logits = random_logits(2)
    told = token_logprobs(logits, 11, 4)
    probabilities = softmax(logits).astype(np.float64)
    np.testing.assert_allclose(told.logprob, np.log(probabilities[11]), rtol=1e-5)
    assert [token for token, _ in told.top] == np.argsort(-logits, kind="stable")[:4].tolist()
    np.testing.assert_allclose(
        [value for _, value in told.top], np.log(np.sort(probabilities)[::-1][:4]), rtol=1e-5
    )
    assert token_logprobs(logits, 11, 0).top == ()


@pytest.mark.parametrize(
    "values",
    [
        {"presence_penalty": 2.5},
        {"frequency_penalty": "much"},
        {"min_p": -0.1},
        {"no_repeat_ngram_size": 1.5},
        {"logit_bias": {3: 200}},
        {"logit_bias": {-1: 1}},
        {"num_logprobs": 21},
        {"min_new_tokens": True},
    ],
)
def test_values_out_of_range_are_refused_by_name(values):
    with pytest.raises(UserError, match=next(iter(values))):
        override_generation_config(GenerationConfig(), **values)


def test_a_checkpoints_file_sets_what_transformers_knows_and_nothing_else(caplog):
    content = {"min_p": 0.1, "no_repeat_ngram_size": 3, "min_new_tokens": 2, "presence_penalty": 1.5}
    config = generation_config_from_json(content)
    assert (config.min_p, config.no_repeat_ngram_size, config.min_new_tokens) == (0.1, 3, 2)
    assert config.presence_penalty == 0
    assert "presence_penalty" in caplog.text
