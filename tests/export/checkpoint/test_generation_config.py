import json
import logging
import math
from pathlib import Path

import pytest

from export.checkpoint.generation_config import (
    DEFAULT_MAX_NEW_TOKENS,
    GenerationConfig,
    checkpoint_generation_config,
    generation_config_from_json,
    load_generation_config,
    override_generation_config,
)
from export.errors import UserError

# As the 2B checkpoint on the hub has it.
PUBLISHED = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.0,
    "temperature": 0.01,
    "top_p": 0.001,
    "top_k": 1,
    "transformers_version": "4.37.0",
}


def test_a_published_file_is_read_key_by_key(tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps(PUBLISHED))
    assert load_generation_config(tmp_path, eos_token_ids=(5,)) == GenerationConfig(
        eos_token_ids=(151645, 151643),
        pad_token_id=151643,
        do_sample=True,
        temperature=0.01,
        top_k=1,
        top_p=0.001,
        repetition_penalty=1.0,
        max_new_tokens=DEFAULT_MAX_NEW_TOKENS,
    )


def test_a_checkpoint_without_the_file_decodes_greedily_until_the_given_tokens(tmp_path):
    config = load_generation_config(tmp_path, eos_token_ids=(5, 6))
    assert config.is_greedy
    assert config.eos_token_ids == (5, 6)
    assert config.repetition_penalty == 1.0


def test_absent_and_null_keys_take_transformers_defaults():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GenerationConfig._get_default_generation_params()
    ours = generation_config_from_json({"top_k": None, "temperature": None})
    for key in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty"):
        assert getattr(ours, key) == theirs[key], key


@pytest.mark.parametrize(("given", "expected"), [(7, (7,)), ([7, 8], (7, 8)), ([], ()), (None, (1,))])
def test_eos_is_one_token_or_several_or_the_fallback(given, expected):
    assert generation_config_from_json({"eos_token_id": given}, eos_token_ids=(1,)).eos_token_ids == expected


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("temperature", math.nan, "temperature must be a number from 0 (greedy) to 100, found nan"),
        ("temperature", math.inf, "found inf"),
        ("temperature", -0.1, "found -0.1"),
        ("temperature", "0.7", "found '0.7'"),
        ("temperature", True, "found True"),
        ("temperature", 10**400, "temperature must be"),
        ("top_k", -1, "top_k must be a whole number, 0 (off) or more, found -1"),
        ("top_k", 1.5, "found 1.5"),
        ("top_p", 1.01, "top_p must be a number from 0 to 1, found 1.01"),
        ("top_p", -0.5, "found -0.5"),
        ("top_p", math.nan, "found nan"),
        (
            "repetition_penalty",
            0,
            "repetition_penalty must be a number from 0.01 to 100 (1 is no penalty), found 0",
        ),
        ("repetition_penalty", math.nan, "found nan"),
        ("repetition_penalty", 1e-300, "found 1e-300"),
        ("max_new_tokens", 0, "max_new_tokens must be a whole number of at least 1, found 0"),
        ("max_new_tokens", 2.0, "found 2.0"),
        ("do_sample", "yes", "do_sample must be true or false, found 'yes'"),
        ("do_sample", 1, "found 1"),
        ("eos_token_id", -3, "eos_token_id must be a token id or a list of them"),
        ("eos_token_id", ["a"], "found 'a'"),
        ("eos_token_id", True, "found True"),
        ("eos_token_id", {"id": 3}, "found {'id': 3}"),
        ("pad_token_id", -1, "pad_token_id must be a token id"),
        (
            "suppress_tokens",
            3,
            "suppress_tokens must be a list of token ids (whole numbers, 0 or more), found 3",
        ),
        ("suppress_tokens", [3, -1], "suppress_tokens must be a list of token ids"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range_and_its_file(key, value, told):
    with pytest.raises(UserError) as caught:
        generation_config_from_json({key: value}, source="here.json")
    assert told in str(caught.value)
    assert str(caught.value).startswith("here.json: ")


def test_all_bad_values_are_told_at_once():
    with pytest.raises(UserError) as caught:
        generation_config_from_json({"temperature": -1, "top_p": 2, "top_k": "all", "max_new_tokens": 3})
    assert str(caught.value).count("\n- ") == 3


@pytest.mark.parametrize("text", ["[1]", "{", ""])
def test_a_file_that_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=r"generation_config\.json"):
        load_generation_config(tmp_path)


def test_keys_that_would_change_the_answer_but_are_not_supported_are_told(caplog):
    with caplog.at_level(logging.WARNING):
        generation_config_from_json(
            {"encoder_no_repeat_ngram_size": 3, "num_beams": 4, "typical_p": 1.0}, source="here.json"
        )
    assert caplog.messages == [
        "here.json: not supported and ignored: num_beams, encoder_no_repeat_ngram_size"
    ]


def test_a_key_that_nobody_knows_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        generation_config_from_json(PUBLISHED | {"creativity": 11, "_from_model_config": True, "mood": None})
    assert caplog.messages == ["generation_config.json: not known and ignored: creativity"]


def test_no_key_that_transformers_has_is_unknown(caplog):
    from transformers import GenerationConfig as PeersConfig

    written = {key: value for key, value in vars(PeersConfig()).items() if key not in PUBLISHED}
    with caplog.at_level(logging.WARNING):
        generation_config_from_json(dict.fromkeys(written, 1) | {"suppress_tokens": [1]} | PUBLISHED)
    assert not [message for message in caplog.messages if "not known" in message]


def test_a_published_file_warns_of_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        generation_config_from_json(PUBLISHED)
    assert caplog.messages == []


def test_overrides_replace_what_is_given_and_keep_the_rest():
    config = generation_config_from_json(PUBLISHED)
    assert override_generation_config(config) == config
    changed = override_generation_config(config, temperature=0.5, top_k=0, max_new_tokens=7)
    assert (changed.temperature, changed.top_k, changed.max_new_tokens) == (0.5, 0, 7)
    assert (changed.top_p, changed.eos_token_ids) == (config.top_p, config.eos_token_ids)


@pytest.mark.parametrize("asked", [{"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.5}])
def test_asking_for_a_sampling_setting_switches_sampling_on(asked):
    assert not override_generation_config(GenerationConfig(), **asked).is_greedy
    assert override_generation_config(GenerationConfig(), **asked, do_sample=False).is_greedy


def test_asking_for_temperature_zero_is_greedy():
    assert override_generation_config(generation_config_from_json(PUBLISHED), temperature=0.0).is_greedy


def test_an_override_out_of_range_is_refused():
    with pytest.raises(UserError, match=r"temperature must be .* found nan"):
        override_generation_config(GenerationConfig(), temperature=math.nan)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ('{"eos_token_id": 7}', None, (7,)),
        ('{"eos_token_id": [7, 5]}', None, (7, 5)),
        ('{"text_config": {"eos_token_id": 7}}', None, (7,)),
        ('{"eos_token_id": null, "text_config": {"eos_token_id": [7, 5]}}', "{}", (7, 5)),
        ('{"eos_token_id": 7}', '{"eos_token_id": [8, 9]}', (8, 9)),
        ("{}", None, ()),
    ],
)
def test_the_end_of_an_answer_is_what_the_checkpoint_says(
    tmp_path: Path, config: str, generation: str | None, expected: tuple[int, ...]
) -> None:
    (tmp_path / "config.json").write_text(config)
    if generation:
        (tmp_path / "generation_config.json").write_text(generation)
    assert checkpoint_generation_config(tmp_path).eos_token_ids == expected


@pytest.mark.parametrize("eos", ['"<|im_end|>"', "[7, -1]", "true"])
def test_an_end_in_config_json_that_is_no_token_id_is_named(tmp_path: Path, eos: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"eos_token_id": {eos}}}')
    with pytest.raises(UserError, match=r"config\.json: eos_token_id must be a token id or a list of them"):
        checkpoint_generation_config(tmp_path)
