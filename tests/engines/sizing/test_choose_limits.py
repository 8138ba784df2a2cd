from pathlib import Path

import pytest

from engines.sizing.choose_limits import choose_limits, options_text
from engines.sizing.limits import Limits
from export.checkpoint.config import ModelConfig, load_config
from export.errors import UserError

MODEL = Path(__file__).resolve().parents[3] / "models" / "qwen2-vl-tiny"


@pytest.fixture
def config() -> ModelConfig:
    return load_config(MODEL)


def test_what_was_given_goes_before_what_is_proposed(config: ModelConfig) -> None:
    proposed = {"max_patches": 1280, "max_segments": 64, "max_prompt_tokens": 576, "max_context": 1088}
    limits = choose_limits(config, {"max_patches": 2560, "max_batch": 2}, proposed)
    assert limits == Limits(2560, 64, 2, 576, 1088)


def test_defaults_are_cut_to_the_model_and_to_what_was_given(config: ModelConfig) -> None:
    assert choose_limits(config, {}, {}).max_context == config.decoder.max_position_embeddings
    limits = choose_limits(config, {"max_patches": 64, "max_context": 100}, {})
    assert (limits.max_segments, limits.prompt_tokens) == (16, 100)


def test_a_contradiction_of_what_was_given_stays_an_error(config: ModelConfig) -> None:
    with pytest.raises(UserError, match="max_segments 64"):
        choose_limits(config, {"max_patches": 64, "max_segments": 64}, {})


def test_a_context_beyond_the_models_is_refused(config: ModelConfig) -> None:
    longest = config.decoder.max_position_embeddings
    with pytest.raises(UserError, match=f"at most --max-context {longest}"):
        choose_limits(config, {"max_context": longest + 1}, {})


def test_limits_are_written_as_the_options_that_give_them() -> None:
    assert (
        options_text({"max_batch": 2, "max_logits_tokens": 32, "max_context": 64})
        == "--max-batch 2 --max-context 64"
    )
