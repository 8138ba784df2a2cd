"""Checkpoints whose quantized layers do not fit what they say of themselves."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.checkpoint.tensors import Checkpoint, open_checkpoint
from export.errors import UserError
from tests.support.quantized_checkpoints import KINDS, gptq, quantize_checkpoint

TINY = Path("models/qwen2-vl-tiny")
UP = "model.layers.0.mlp.up_proj"
OUT = "model.layers.0.self_attn.o_proj"


def quantized(tmp_path: Path, kind: str = "gptq", extra: Mapping[str, np.ndarray] | None = None) -> Path:
    quantize_checkpoint(TINY, tmp_path / "checkpoint", KINDS[kind], extra=extra)
    return tmp_path / "checkpoint"


def edit_quantization(directory: Path, **changes: Any) -> None:
    content = json.loads((directory / "config.json").read_text())
    content["quantization_config"] |= changes
    (directory / "config.json").write_text(json.dumps(content))


def edit_tensors(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def message_of(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_all(open_checkpoint(directory))
    return str(caught.value)


def read_all(checkpoint: Checkpoint) -> None:
    for linear in checkpoint.packed.values():
        linear.read()


def test_a_bias_of_zeros_where_the_model_has_none_changes_nothing(tmp_path):
    directory = quantized(tmp_path, extra={f"{OUT}.bias": np.zeros(192, np.float16)})
    checkpoint = open_checkpoint(directory)
    assert f"{OUT}.weight" in checkpoint.packed
    assert f"{OUT}.bias" not in checkpoint.tensors


def test_a_bias_that_is_not_zero_where_the_model_has_none_is_refused(tmp_path):
    bias = np.zeros(192, np.float16)
    bias[191] = 1
    assert f"{OUT}.bias: not part of Qwen2-VL, and not all zero" in message_of(
        quantized(tmp_path, extra={f"{OUT}.bias": bias})
    )


def test_parts_that_do_not_fit_are_listed_at_once(tmp_path):
    directory = quantized(tmp_path)

    def change(tensors):
        del tensors[f"{UP}.scales"]
        tensors[f"{OUT}.qweight"] = tensors[f"{OUT}.qweight"][:12].contiguous()
        tensors[f"{OUT}.g_idx"] = tensors[f"{OUT}.g_idx"].half()

    edit_tensors(directory, change)
    message = message_of(directory)
    assert f"{UP}.scales: missing, expected shape [3, 384]" in message
    assert f"{OUT}.qweight: int32 [12, 192], expected int32 [24, 192]" in message
    assert f"{OUT}.g_idx: float16 [192], expected int32 or int64 [192]" in message


def test_groups_that_do_not_divide_the_inputs_are_refused(tmp_path):
    directory = quantized(tmp_path)
    edit_quantization(directory, group_size=128)
    assert f"{UP}.weight: groups of 128 do not divide its 192 inputs" in message_of(directory)


def test_groups_of_different_sizes_are_refused(tmp_path):
    directory = quantized(tmp_path)
    edit_tensors(directory, lambda tensors: tensors[f"{UP}.g_idx"].__setitem__(0, 2))
    assert f"{UP} cannot be read: the group of each input must give each of 3 groups 64 inputs" in message_of(
        directory
    )


def test_zero_points_that_contradict_sym_name_the_version_of_the_format(tmp_path):
    directory = quantized(tmp_path)
    edit_quantization(directory, checkpoint_format="gptq_v2")
    assert (
        "its zero points are not 8, although sym is true: checkpoint_format is gptq, or sym is false"
        in message_of(directory)
    )


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("awq", {"modules_to_not_convert": ["visual", "up_proj"]}),
        ("W4A16", {"ignore": ["lm_head", UP]}),
        ("W4A16", {"ignore": [r"re:.*layers\.0.*up_proj"]}),
        ("gptq", {"dynamic": {r"-:.*\.0\.mlp\.up_proj": {}}}),
        ("auto-round", {"extra_config": {UP: {"bits": 16, "data_type": "fp"}}}),
    ],
)
def test_a_layer_that_is_listed_as_not_quantized_but_is_contradicts(tmp_path, kind, changes):
    directory = quantized(tmp_path, kind)
    edit_quantization(directory, **changes)
    assert f"{UP}: stored quantized, although quantization_config leaves it out" in message_of(directory)


@pytest.mark.parametrize("kind", ["gptq", "awq", "W8A8", "FP8 dynamic"])
def test_a_layer_that_is_stored_in_floating_point_is_none_of_the_quantized(tmp_path, kind):
    directory = quantized(tmp_path, kind)
    plain = load_file(TINY / "model.safetensors")

    def change(tensors):
        for name in [name for name in tensors if name.startswith(f"{UP}.")]:
            del tensors[name]
        tensors[f"{UP}.weight"] = plain[f"{UP}.weight"]

    edit_tensors(directory, change)
    checkpoint = open_checkpoint(directory)
    assert f"{UP}.weight" in checkpoint.tensors
    assert len(checkpoint.packed) == 5 * 7 - 1


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_names_of_other_layouts_of_modules_are_read(tmp_path, prefix):
    directory = quantized(tmp_path, "W4A16")

    def change(tensors):
        for name in [name for name in tensors if name.startswith("model.")]:
            tensors[prefix + name.removeprefix("model.")] = tensors.pop(name)

    edit_tensors(directory, change)
    edit_quantization(directory, ignore=[f"{prefix}layers.9.mlp.up_proj"])
    assert len(open_checkpoint(directory).packed) == 5 * 7
    edit_quantization(directory, ignore=[f"{prefix}layers.0.mlp.up_proj"])
    assert f"{UP}: stored quantized, although quantization_config leaves it out" in message_of(directory)


@pytest.mark.parametrize("ties", [True, False])
def test_a_head_that_is_quantized_is_no_token_embedding(tmp_path, ties):
    embedding = np.random.default_rng(0).normal(size=(704, 192)).astype(np.float32)
    parts, meant = gptq(embedding)
    directory = quantized(tmp_path)

    def change(tensors):
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:704].contiguous()
        for part, values in parts.items():
            tensors[f"lm_head.{part}"] = torch.from_numpy(np.ascontiguousarray(values))

    edit_tensors(directory, change)
    content = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(
        json.dumps(
            content
            | {"vocab_size": 704, "tie_word_embeddings": ties}
            | {
                "image_token_id": 700,
                "video_token_id": 701,
                "vision_start_token_id": 702,
                "vision_end_token_id": 703,
            }
        )
    )
    checkpoint = open_checkpoint(directory)
    assert not checkpoint.config.decoder.tie_word_embeddings
    np.testing.assert_array_equal(checkpoint.packed["lm_head.weight"].read().dequantized(), meant)


def test_codes_without_a_configuration_of_them_are_refused(tmp_path):
    directory = quantized(tmp_path)
    content = json.loads((directory / "config.json").read_text())
    del content["quantization_config"]
    (directory / "config.json").write_text(json.dumps(content))
    assert "has no quantization_config" in message_of(directory)


@pytest.mark.parametrize(
    ("part", "value", "problem"),
    [
        ("weight_shape", np.array([192, 384]), "weight_shape is [192, 384], expected [384, 192]"),
        ("weight_zero_point", None, "weight_zero_point: missing, expected shape [48, 3]"),
        ("weight_global_scale", np.zeros(1, np.float32), "weight_global_scale: not part of"),
    ],
)
def test_what_a_packed_layer_lacks_or_has_too_much_is_named(tmp_path, part, value, problem):
    directory = quantized(tmp_path, "W4A16 asymmetric")

    def change(tensors):
        if value is None:
            del tensors[f"{UP}.{part}"]
        else:
            tensors[f"{UP}.{part}"] = torch.from_numpy(value)

    edit_tensors(directory, change)
    assert problem in message_of(directory)


def test_a_shard_of_codes_alone_is_read_beside_the_others(tmp_path):
    directory = quantized(tmp_path)
    tensors = {}
    edit_tensors(
        directory,
        lambda all_: [tensors.update({name: all_.pop(name)}) for name in list(all_) if "qweight" in name],
    )
    shutil.move(directory / "model.safetensors", directory / "model-00001-of-00002.safetensors")
    save_file(tensors, directory / "model-00002-of-00002.safetensors")
    weight_map = dict.fromkeys(tensors, "model-00002-of-00002.safetensors")
    weight_map["rest"] = "model-00001-of-00002.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert len(load_file(directory / "model-00002-of-00002.safetensors")) == 35
    read_all(open_checkpoint(directory))


def test_gguf_is_refused_with_the_way_out(tmp_path):
    directory = quantized(tmp_path)
    (directory / "model.safetensors").rename(directory / "model-q4_k_m.gguf")
    message = message_of(directory)
    assert "holds GGUF" in message
    assert "--quantize int4" in message
