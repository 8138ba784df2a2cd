import json
import math
from pathlib import Path
from typing import Any

import pytest

from examples.random_checkpoint import SIZES, Sizes, nested_config, published_config
from export.checkpoint.config import YarnConfig, config_from_json, load_config
from export.errors import UserError

PUBLISHED_7B_TOKENS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}


def published(**changes: Any) -> dict[str, Any]:
    return published_config(Sizes(), "bfloat16") | changes


def problems_of(content: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        config_from_json(content, "here/config.json")
    assert "here/config.json" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("size", SIZES)
def test_published_and_nested_spellings_mean_the_same(size):
    flat = config_from_json(published_config(SIZES[size], "float16"))
    assert flat == config_from_json(nested_config(SIZES[size], "float16"))
    assert flat.dtype == "float16"


def test_the_2b_model_as_published():
    config = config_from_json(published_config(SIZES["2b"], "bfloat16"))
    decoder, vision = config.decoder, config.vision
    assert (decoder.head_dim, decoder.num_key_value_heads, decoder.tie_word_embeddings) == (128, 2, True)
    assert decoder.mrope_section == (16, 24, 24)
    assert (decoder.rope_theta, decoder.rms_norm_eps) == (1_000_000.0, 1e-6)
    assert (vision.head_dim, vision.patch_values, vision.intermediate_size) == (80, 1176, 5120)
    assert vision.hidden_size == decoder.hidden_size == 1536
    assert {name: getattr(config, name) for name in PUBLISHED_7B_TOKENS} == PUBLISHED_7B_TOKENS
    assert config.dtype == "bfloat16"


def test_a_resaved_vision_config_may_leave_out_what_equals_transformers_defaults():
    content = published_config(SIZES["7b"], "bfloat16")
    content["vision_config"] = {"hidden_size": 3584}
    assert (
        config_from_json(content).vision == config_from_json(published_config(SIZES["7b"], "bfloat16")).vision
    )


def test_the_merger_follows_the_decoder_and_not_another_sizes_hidden_size():
    content = published()
    content["vision_config"]["hidden_size"] = 8192
    assert config_from_json(content).vision.hidden_size == Sizes().hidden_size


def test_rope_scaling_resaved_with_the_default_type_is_still_mrope():
    resaved = {"rope_type": "default", "type": "default", "mrope_section": [4, 6, 6]}
    assert config_from_json(published(rope_scaling=resaved)).decoder.mrope_section == (4, 6, 6)


def test_a_stated_window_that_is_not_used_changes_nothing():
    assert config_from_json(published(sliding_window=128)) == config_from_json(published())


@pytest.mark.parametrize(
    "inert",
    [
        {"sliding_window": 128, "max_window_layers": 3},
        {"sliding_window": 32768, "max_window_layers": 0},
        {"sliding_window": 128, "max_window_layers": 0, "layer_types": ["full_attention"] * 3},
    ],
    ids=["no layer", "as long as the context", "types say full"],
)
def test_a_window_that_no_layer_slides_over_changes_nothing(inert):
    assert config_from_json(published(use_sliding_window=True, **inert)) == config_from_json(published())


@pytest.mark.parametrize(
    "sliding",
    [
        {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["sliding_attention"] * 3},
    ],
)
def test_a_window_that_layers_slide_over_is_refused(sliding):
    assert "(use_sliding_window): sliding attention is not computed" in problems_of(published(**sliding))


def test_layer_types_of_another_kind_are_shown():
    assert "layer_types must list full_attention" in problems_of(published(layer_types=["chunked_attention"]))


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "llama", None, 7])
def test_another_architecture_is_named(model_type):
    assert f"model_type is {model_type!r}, expected 'qwen2_vl'" in problems_of(
        published(model_type=model_type)
    )


@pytest.mark.parametrize("method", ["bitsandbytes", "fp8", "mxfp4", "gguf", "exl3"])
def test_quantized_weights_that_are_not_read_are_refused_with_their_method(method):
    message = problems_of(published(quantization_config={"quant_method": method, "bits": 4}))
    assert f"quant_method '{method}'" in message
    assert "unquantized" in message


@pytest.mark.parametrize(
    "section",
    [None, [16, 24, 24], [4, 6], [4, 6, 6, 0], [8, 8, -0.5], [20, -2, -2], "4,6,6", [True, 15, 0.0]],
)
def test_a_section_that_does_not_fit_the_head_is_shown(section):
    message = problems_of(published(rope_scaling={"type": "mrope", "mrope_section": section}))
    assert "sum to head_dim / 2 = 16" in message
    assert repr(section) in message


YARN = {"mrope_section": [4, 6, 6], "factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    "content",
    [
        published(rope_scaling={"type": "yarn", **YARN}),
        published(rope_scaling={"rope_type": "yarn", "type": "yarn", **YARN}),
        published(rope_scaling=None, rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, **YARN}),
        published(rope_scaling={"type": "yarn", **YARN}, rope_parameters={"rope_type": "yarn", **YARN}),
        published(rope_scaling={"type": "yarn", **YARN, "factor": None, "truncate": None, "mscale": 0}),
        published(
            rope_scaling={"type": "yarn", "mrope_section": [4, 6, 6], "factor": 4},
            original_max_position_embeddings=8192,
        ),
    ],
)
def test_every_spelling_of_yarn_means_the_same(content):
    decoder = config_from_json(content).decoder
    assert decoder.yarn == YarnConfig(4.0, 8192, 0.1 * math.log(4) + 1)
    assert decoder.mrope_section == (4, 6, 6)
    assert decoder.max_position_embeddings == 32768


def test_yarn_lengthens_the_context_that_is_told():
    stretched = published(rope_scaling={"type": "yarn", "mrope_section": [4, 6, 6], "factor": 2.5})
    assert config_from_json(stretched).decoder.max_position_embeddings == 81920


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"type": "linear", "factor": 2}, "rope_type 'linear' is not computed"),
        ({"rope_type": "dynamic", "factor": 2}, "rope_type 'dynamic' is not computed"),
        ({"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}, "rope_type 'longrope' is not computed"),
        ({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1}, "rope_type 'llama3' is not computed"),
        ({"rope_type": 7}, "rope_type 7 is not computed"),
        ({"type": "yarn", "rope_type": "default"}, "rope_type 'default' contradicts type 'yarn'"),
        ({"type": "mrope", "factor": 4}, "factor would need rope_type 'yarn'"),
        ({"type": "mrope", "attention_factor": 1.2}, "attention_factor would need rope_type 'yarn'"),
        ({"type": "mrope", "stretch": 2}, "rope_scaling.stretch: not part of rope type default"),
        ({"type": "yarn", "factor": 4, "stretch": 2}, "rope_scaling.stretch: not part of rope type yarn"),
        ({"type": "yarn"}, "factor is missing"),
        ({"type": "yarn", "factor": 0.5}, "factor must be a number of at least 1, found 0.5"),
        ({"type": "yarn", "factor": "4"}, "factor must be a number of at least 1, found '4'"),
        ({"type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 32}, "beta_fast 1 must be at least beta_slow 32"),
        ({"type": "yarn", "factor": 4, "truncate": 1}, "truncate must be true or false, found 1"),
        ({"type": "mrope", "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, not 1"),
        ({"type": "mrope", "mrope_interleaved": True}, "mrope_interleaved is True, not False"),
        ({"type": "mrope", "rope_theta": 1e4}, "rope_theta 10000 contradicts rope_theta 1e+06"),
        ("mrope", "rope_scaling must be an object, found 'mrope'"),
    ],
)  # fmt: skip
def test_a_rotary_embedding_that_is_not_computed_is_named(rope, expected):
    section = {"mrope_section": [4, 6, 6], **rope} if isinstance(rope, dict) else rope
    assert expected in problems_of(published(rope_scaling=section))


def test_two_spellings_that_contradict_each_other_are_shown():
    content = published(rope_parameters={"rope_type": "yarn", **YARN})
    message = problems_of(content)
    assert "rope_scaling.rope_type 'default' contradicts rope_parameters.rope_type 'yarn'" in message


def test_a_config_without_rope_scaling_is_refused():
    content = published()
    del content["rope_scaling"]
    assert "mrope_section" in problems_of(content)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hidden_size": "128"}, "hidden_size must be an integer of at least 1, found '128'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be an integer of at least 1, found 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be an integer of at least 1, found True"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 1000, found 1000000000"),
        ({"vision_config": {"depth": 1001}}, "vision_config.depth must be at most 1000, found 1001"),
        ({"vocab_size": None}, "vocab_size must be an integer of at least 1, found None"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 must be a multiple of num_key_value_heads 3"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number, found 0"),
        ({"rope_theta": float("nan")}, "rope_theta must be a positive number, found nan"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', not silu"),
        ({"torch_dtype": "float8_e4m3fn"}, "dtype is 'float8_e4m3fn', expected one of float32, float16, bfloat16"),
        ({"image_token_id": 512}, "image_token_id is 512, outside the vocabulary of 512"),
        ({"vision_config": {"embed_dim": 60, "num_heads": 4}}, "embed_dim 60 must be a multiple of 4 * num_heads"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_named(changes, expected):
    assert expected in problems_of(published(**changes))


# Keys that nobody reads

INERT = {
    "_name_or_path": "someone/model",
    "_attn_implementation_autoset": True,
    "auto_map": {"AutoModel": "modeling.Model"},
    "unsloth_version": "2025.1",
    "pad_token_id": 3,
    "use_cache": False,
    "id2label": {"0": "LABEL_0"},
    "is_encoder_decoder": False,
    "temperature": 1.0,
    "max_length": 20,
    "attention_dropout": 0.1,
    "quantization_config": None,
    "head_dim": None,
    "num_key_value_heads": None,
    "some_plan": None,
}


@pytest.mark.parametrize("make_config", [published_config, nested_config])
def test_keys_that_change_no_number_are_passed_over_wherever_they_stand(make_config):
    sizes = Sizes(num_attention_heads=4, num_key_value_heads=4)
    content = make_config(sizes, "float32")
    expected = config_from_json(content)
    assert config_from_json(content | INERT) == expected
    for section in ("text_config", "vision_config"):
        if section in content:
            inert = {key: value for key, value in INERT.items() if key != "quantization_config"}
            changed = content | {section: content[section] | inert}
            assert config_from_json(changed) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"attention_multiplier": 0.5}, "attention_multiplier: not known to qv-export"),
        ({"logit_softcapping": 30.0, "attention_multiplier": 2}, "attention_multiplier, logit_softcapping: not known"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder is True, not False"),
        ({"attention_bias": False}, "attention_bias is False, not True"),
        ({"temperature": 0.7}, "temperature is 0.7: move settings of generation to generation_config.json"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, not 1"),
        ({"text_config": {"final_scale": 2.0}}, "text_config.final_scale: not known"),
        ({"text_config": {"rms_norm_eps": 1e-5}}, "rms_norm_eps 1e-06 contradicts text_config.rms_norm_eps 1e-05"),
        ({"text_config": [1]}, "text_config must be an object, found [1]"),
        ({"vision_config": {"window_size": 112}}, "vision_config.window_size: not known"),
        ({"vision_config": {"fullatt_block_indexes": [7]}}, "vision_config.fullatt_block_indexes: not known"),
        ({"vision_config": {"hidden_act": "silu"}}, "vision_config.hidden_act is 'silu', not quick_gelu"),
        ({"vision_config": {"rope_parameters": {"rope_type": "axial", "rope_theta": 1e6}}},
         "vision_config.rope_parameters.rope_theta is 1000000.0, not 10000"),
        ({"vision_config": {"rope_parameters": {"rope_type": "yarn"}}},
         "vision_config.rope_parameters.rope_type is 'yarn', not axial or default"),
        ({"vision_config": 3}, "vision_config must be an object, found 3"),
        ({"quantization_config": "awq"}, "quantization_config must be an object, found 'awq'"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, found 'yes'"),
        ({"torch_dtype": "int8"}, "dtype is 'int8', expected one of float32, float16, bfloat16"),
    ],
)  # fmt: skip
def test_a_key_that_may_decide_numbers_is_never_passed_over(changes, expected):
    assert expected in problems_of(published(**changes))


@pytest.mark.parametrize(
    ("stated", "dtype"),
    [("torch.bfloat16", "bfloat16"), ("float16", "float16"), ("auto", None), (None, None)],
)
def test_every_spelling_of_the_dtype(stated, dtype):
    assert config_from_json(published(torch_dtype=stated)).dtype == dtype


def test_the_config_that_transformers_writes_today_reads_as_the_published_one():
    """Every key of every class of Transformers 5.23, with its default: none of them is unknown."""
    from transformers import Qwen2VLConfig

    content = published_config(SIZES["7b"], "bfloat16")
    resaved = json.loads(json.dumps(Qwen2VLConfig(**content).to_dict()))
    assert config_from_json(resaved) == config_from_json(content)


def test_all_problems_are_listed_at_once():
    content = published(num_key_value_heads=3, hidden_act="gelu", image_token_id=-1, rms_norm_eps="small")
    del content["vocab_size"]
    message = problems_of(content)
    for name in ("vocab_size", "num_key_value_heads", "hidden_act", "image_token_id", "rms_norm_eps"):
        assert name in message
    assert message.count("\n- ") >= 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "must hold a JSON object, found list"),
        ("3", "must hold a JSON object, found int"),
        (json.dumps({}), "model_type is None"),
    ],
    ids=["cut", "empty", "deep", "list", "number", "no type"],
)
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, text, expected):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json") as caught:
        load_config(tmp_path)
    assert expected in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path: Path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(UserError, match=r"config.json cannot be read: 'utf-8' codec"):
        load_config(tmp_path)


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="not found"):
        load_config(tmp_path / "nowhere")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config\.json"):
        load_config(tmp_path)


@pytest.mark.parametrize("number", [1001, 10**6, 2**31, 10**18, 10**299])
@pytest.mark.parametrize("name", ["num_hidden_layers", "depth"])
def test_a_number_of_layers_that_no_model_has_is_refused_before_one_is_expanded(name, number):
    changes = {"vision_config": {"depth": number}} if name == "depth" else {name: number}
    assert f"{name} must be at most 1000, found " in problems_of(published(**changes))


@pytest.mark.parametrize("value", [10**299, 2**31, -(10**299)])
@pytest.mark.parametrize("name", ["hidden_size", "vocab_size", "image_token_id", "num_attention_heads"])
def test_an_integer_that_no_size_is_is_a_message(name, value):
    assert f"{name} must be a" in problems_of(published(**{name: value}))


@pytest.mark.parametrize("value", [1e308, 10**299])
def test_a_number_whose_products_overflow_is_a_message(value):
    assert "mlp_ratio must be a positive number of at most 1e+12" in problems_of(
        published(vision_config={"mlp_ratio": value})
    )
