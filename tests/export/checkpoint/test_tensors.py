import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from examples.random_checkpoint import SIZES, Sizes, published_config, tensor_shapes, write_checkpoint
from export.checkpoint.config import ModelConfig, config_from_json
from export.checkpoint.tensors import INDEX_FILE, SINGLE_FILE, open_checkpoint
from export.errors import UserError
from export.models.families import FAMILIES

SMALL: dict[str, Any] = {"num_hidden_layers": 1, "vision_depth": 1, "vocab_size": 400}
Tensors = dict[str, np.ndarray]


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """All weights in one file, published keys."""
    return write_checkpoint(tmp_path / "single", dtype="float32", **SMALL)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "sharded", dtype="bfloat16", shards=3, **SMALL)


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def rewrite(checkpoint: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(checkpoint / SINGLE_FILE)
    change(tensors)
    save_file(tensors, checkpoint / SINGLE_FILE)


def edit_config(checkpoint: Path, **changes: Any) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


PLACEHOLDERS = {
    "image_token_id": 390,
    "video_token_id": 391,
    "vision_start_token_id": 392,
    "vision_end_token_id": 393,
}


# The map


@pytest.mark.parametrize("size", SIZES)
def test_the_map_of_weights_is_the_one_written_by_hand(size):
    """The reference's own parameters, against the table that writes random checkpoints."""
    config = config_from_json(published_config(SIZES[size], "bfloat16"))
    assert FAMILIES["qwen2_vl"].weight_shapes(config) == tensor_shapes(SIZES[size])


class ToyFamily:
    """Another architecture, as a new folder would bring it: the same sizes, one weight alone."""

    model_type, architecture = "toy", "ToyForConditionalGeneration"

    def read_config(self, content: Mapping[str, Any], source: str) -> ModelConfig:
        return replace(config_from_json({**content, "model_type": "qwen2_vl"}, source), model_type="toy")

    def weight_shapes(self, config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
        return {"model.embed_tokens.weight": (config.decoder.vocab_size, config.decoder.hidden_size)}

    def reference(self, config: ModelConfig) -> Any:
        raise NotImplementedError

    def position_ids(self, token_ids: Any, grids: Any, config: ModelConfig) -> Any:
        raise NotImplementedError


def test_another_family_is_one_row(single: Path, monkeypatch: pytest.MonkeyPatch):
    edit_config(single, model_type="toy", architectures=["ToyForConditionalGeneration"])
    message = message_of(lambda: open_checkpoint(single))
    assert "model_type is 'toy', expected 'qwen2_vl'" in message
    monkeypatch.setitem(FAMILIES, "toy", ToyFamily())
    save_file({"model.embed_tokens.weight": np.ones((400, 128), np.float32)}, single / SINGLE_FILE)
    checkpoint = open_checkpoint(single)
    assert checkpoint.config.model_type == "toy"
    assert list(checkpoint.tensors) == ["model.embed_tokens.weight"]
    assert not checkpoint.notes


# What opens


@pytest.mark.parametrize("layout", ["published", "nested"])
@pytest.mark.parametrize("shards", [None, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_is_found_under_its_published_name(tmp_path: Path, layout, shards, tied):
    directory = write_checkpoint(
        tmp_path / "checkpoint", layout=layout, shards=shards, tie_word_embeddings=tied, **SMALL
    )
    checkpoint = open_checkpoint(directory)
    sizes = Sizes(**SMALL, tie_word_embeddings=tied)
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == tensor_shapes(sizes)
    assert ("lm_head.weight" in checkpoint.tensors) is not tied
    assert len(checkpoint.weight_files) == (shards or 1)
    assert sorted(chain.from_iterable(checkpoint.names_by_file().values())) == sorted(checkpoint.tensors)
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {"bfloat16"}


def test_offsets_point_at_the_tensors_own_bytes(single: Path):
    truth = load_file(single / SINGLE_FILE)
    content = (single / SINGLE_FILE).read_bytes()
    for name, tensor in open_checkpoint(single).tensors.items():
        stored = content[tensor.offset_bytes : tensor.offset_bytes + tensor.length_bytes]
        assert np.array_equal(np.frombuffer(stored, "<f4").reshape(tensor.shape), truth[name])


def test_a_tied_checkpoint_may_hold_the_head_nevertheless(single: Path):
    rewrite(single, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}))
    assert "lm_head.weight" not in open_checkpoint(single).tensors


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("place", [0, 5000, -1])
def test_a_stored_head_that_differs_is_used_although_the_flag_says_tied(tmp_path: Path, dtype, place):
    directory = write_checkpoint(tmp_path / "tied", dtype=dtype, **SMALL)

    def train_head(tensors: Tensors) -> None:
        head = tensors["model.embed_tokens.weight"].copy()
        head.reshape(-1)[place] += 1
        tensors["lm_head.weight"] = head

    rewrite(directory, train_head)
    checkpoint = open_checkpoint(directory)
    assert checkpoint.tensors["lm_head.weight"].name == "lm_head.weight"
    assert not checkpoint.config.decoder.tie_word_embeddings
    assert checkpoint.config_changes == {"tie_word_embeddings": False}
    (note,) = checkpoint.notes
    assert "lm_head.weight is stored and differs" in note


def test_a_head_that_is_a_copy_in_another_dtype_is_tied(tmp_path: Path):
    directory = write_checkpoint(tmp_path / "tied", dtype="bfloat16", **SMALL)
    rewrite(
        directory,
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors["model.embed_tokens.weight"].astype(np.float32)}
        ),
    )
    checkpoint = open_checkpoint(directory)
    assert "lm_head.weight" not in checkpoint.tensors
    assert not checkpoint.notes


def test_a_tied_checkpoint_may_hold_the_head_alone(single: Path):
    rewrite(
        single,
        lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")}),
    )
    checkpoint = open_checkpoint(single)
    assert checkpoint.tensors["model.embed_tokens.weight"].name == "lm_head.weight"
    assert checkpoint.config.decoder.tie_word_embeddings


def test_an_untied_model_without_a_head_is_tied_with_a_word(tmp_path: Path):
    directory = write_checkpoint(tmp_path / "untied", tie_word_embeddings=False, dtype="float32", **SMALL)
    rewrite(directory, lambda tensors: tensors.pop("lm_head.weight"))
    checkpoint = open_checkpoint(directory)
    assert checkpoint.config.decoder.tie_word_embeddings
    assert checkpoint.config_changes == {"tie_word_embeddings": True}
    assert "there is no lm_head.weight" in checkpoint.notes[0]


def test_a_head_of_another_shape_is_named(single: Path):
    rewrite(single, lambda tensors: tensors.update({"lm_head.weight": np.ones((400, 64), np.float32)}))
    assert "lm_head.weight: shape [400, 64], expected [400, 128]" in message_of(
        lambda: open_checkpoint(single)
    )


@pytest.mark.parametrize("stated", ["auto", None])
def test_a_dtype_that_is_left_to_the_weights_is_that_of_most_of_them(single: Path, stated):
    rewrite(
        single,
        lambda tensors: tensors.update(
            {name: array.astype(np.float16) for name, array in tensors.items() if array.ndim > 1}
        ),
    )
    edit_config(single, torch_dtype=stated)
    assert open_checkpoint(single).dtype == "float16"


@pytest.mark.parametrize("prefix", ["base_model.model.", "module.", "_orig_mod.", "model."])
def test_names_behind_a_wrapper_are_read_and_told(single: Path, prefix):
    expected = {name: tensor.shape for name, tensor in open_checkpoint(single).tensors.items()}
    tensors = load_file(single / SINGLE_FILE)
    save_file({prefix + name: array for name, array in tensors.items()}, single / SINGLE_FILE)
    checkpoint = open_checkpoint(single)
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == expected
    assert "begin with" in checkpoint.notes[0]
    assert all(tensor.name == prefix + name for name, tensor in checkpoint.tensors.items())


def test_derived_buffers_are_passed_over(single: Path):
    buffer = np.ones(16, np.float32)
    rewrite(
        single,
        lambda tensors: tensors.update(
            {
                "model.layers.0.self_attn.rotary_emb.inv_freq": buffer,
                "visual.rotary_pos_emb.inv_freq": buffer.copy(),
            }
        ),
    )
    assert not open_checkpoint(single).notes


def test_tensors_outside_the_model_are_named_and_left_out(single: Path):
    rewrite(
        single,
        lambda tensors: tensors.update(
            {"score.weight": np.ones((1, 128), np.float32), "v_head.bias": np.ones(1, np.float32)}
        ),
    )
    checkpoint = open_checkpoint(single)
    assert "score.weight" not in checkpoint.tensors
    (note,) = checkpoint.notes
    assert "2 stored tensors are not part of Qwen2-VL and are left out: score.weight, v_head.bias" in note


@pytest.mark.parametrize(
    "name", ["lm_head.bias", "model.layers.0.self_attn.o_proj.bias", "model.layers.1.mlp.up_proj.weight"]
)
def test_a_tensor_inside_the_model_that_nobody_computes_is_refused(single: Path, name):
    rewrite(single, lambda tensors: tensors.update({name: np.ones(128, np.float32)}))
    assert f"{name}: not part of Qwen2-VL" in message_of(lambda: open_checkpoint(single))


def test_an_adapter_that_was_saved_with_the_model_is_refused_with_the_way_out(single: Path):
    def wrap(tensors: Tensors) -> None:
        module = "model.layers.0.self_attn.q_proj"
        tensors[f"{module}.base_layer.weight"] = tensors.pop(f"{module}.weight")
        tensors[f"{module}.lora_A.default.weight"] = np.ones((4, 128), np.float32)

    rewrite(single, wrap)
    message = message_of(lambda: open_checkpoint(single))
    assert "1 more belong to an adapter that is not merged" in message
    assert "merge_and_unload()" in message


@pytest.mark.parametrize("tied", [True, False])
def test_more_rows_than_the_vocabulary_says_are_followed(tmp_path: Path, tied):
    directory = write_checkpoint(
        tmp_path / "resized", dtype="float32", **{**SMALL, "tie_word_embeddings": tied, "vocab_size": 448}
    )
    edit_config(directory, vocab_size=400, **PLACEHOLDERS)
    checkpoint = open_checkpoint(directory)
    assert checkpoint.config.decoder.vocab_size == 448
    assert checkpoint.config_changes == {"vocab_size": 448}
    assert "vocab_size is 400, but the tables have 448 rows" in checkpoint.notes[0]


def test_tables_that_disagree_about_the_vocabulary_are_refused(tmp_path: Path):
    directory = write_checkpoint(
        tmp_path / "resized", dtype="float32", **{**SMALL, "tie_word_embeddings": False, "vocab_size": 448}
    )
    rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": np.ones((400, 128), np.float32)}))
    edit_config(directory, vocab_size=400, **PLACEHOLDERS)
    assert "model.embed_tokens.weight: shape [448, 128], expected [400, 128]" in message_of(
        lambda: open_checkpoint(directory)
    )


@pytest.mark.parametrize("architectures", [["ColQwen2"], ["Qwen2VLForSequenceClassification"], ["A", "B"]])
def test_another_class_is_named(single: Path, architectures):
    edit_config(single, architectures=architectures)
    (note,) = open_checkpoint(single).notes
    assert f"architectures is {architectures!r}: it is exported as Qwen2VLForConditionalGeneration" in note


@pytest.mark.parametrize("architectures", [None, ["Qwen2VLForConditionalGeneration"]])
def test_the_usual_class_needs_no_word(single: Path, architectures):
    edit_config(single, architectures=architectures)
    assert not open_checkpoint(single).notes


def test_opening_reads_headers_only(tmp_path: Path):
    # 72B-shaped: 147 GB of holes, which nothing could read in a test's time.
    directory = write_checkpoint(tmp_path / "72b", size="72b", sparse=True, shards=4)
    checkpoint = open_checkpoint(directory)
    assert sum(tensor.length_bytes for tensor in checkpoint.tensors.values()) > 140e9


# Tensors that do not fit


def test_missing_unused_and_misshapen_tensors_are_listed_at_once(single: Path):
    def spoil(tensors: Tensors) -> None:
        del tensors["model.norm.weight"], tensors["visual.merger.ln_q.bias"]
        tensors["model.layers.0.mlp.gate_proj.scales"] = np.zeros((2, 2), np.float32)
        tensors["model.layers.1.input_layernorm.weight"] = np.zeros(128, np.float32)
        tensors["model.layers.0.self_attn.q_proj.weight"] = np.zeros((128, 64), np.float32)

    rewrite(single, spoil)
    lines = message_of(lambda: open_checkpoint(single)).splitlines()
    assert str(single) in lines[0]
    assert sorted(lines[1:-1]) == [
        "- model.layers.0.mlp.gate_proj.scales: not part of Qwen2-VL (in model.safetensors)",
        "- model.layers.0.self_attn.q_proj.weight: shape [128, 64], expected [128, 128]",
        "- model.layers.1.input_layernorm.weight: not part of Qwen2-VL (in model.safetensors)",
        "- model.norm.weight: missing, expected shape [128]",
        "- visual.merger.ln_q.bias: missing, expected shape [64]",
    ]
    assert "config.json" in lines[-1]


def test_a_config_of_another_size_names_the_tensors_and_counts_the_rest(single: Path):
    config = json.loads((single / "config.json").read_text()) | {"num_hidden_layers": 30}
    (single / "config.json").write_text(json.dumps(config))
    message = message_of(lambda: open_checkpoint(single))
    assert "model.layers.1.input_layernorm.weight: missing" in message
    assert message.count("\n- ") == 41
    # 29 layers of 12 tensors are missing.
    assert f"- and {29 * 12 - 40} more" in message


def test_a_tensor_stored_twice_is_named_with_both_files(sharded: Path):
    first, second, _ = sorted(sharded.glob("*.safetensors"))
    name = next(iter(load_file(first)))
    save_file(load_file(second) | {name: load_file(first)[name]}, second)
    message = message_of(lambda: open_checkpoint(sharded))
    assert f"{name}: stored twice, in {first.name} and {second.name}" in message


def test_both_layouts_of_one_tensor_count_as_twice(single: Path):
    rewrite(
        single,
        lambda tensors: tensors.update({"model.language_model.norm.weight": tensors["model.norm.weight"]}),
    )
    assert "model.norm.weight: stored twice" in message_of(lambda: open_checkpoint(single))


def test_an_unknown_architecture_is_refused_before_its_weights_are_looked_at(single: Path):
    config = json.loads((single / "config.json").read_text()) | {"model_type": "llava"}
    (single / "config.json").write_text(json.dumps(config))
    (single / SINGLE_FILE).unlink()
    assert "model_type is 'llava'" in message_of(lambda: open_checkpoint(single))


# Files


def test_a_directory_without_weights_says_which_files_it_lacks(single: Path):
    (single / SINGLE_FILE).unlink()
    message = message_of(lambda: open_checkpoint(single))
    assert SINGLE_FILE in message
    assert INDEX_FILE in message


def test_missing_shards_are_all_named(sharded: Path):
    first, _, last = sorted(sharded.glob("*.safetensors"))
    first.unlink()
    last.unlink()
    message = message_of(lambda: open_checkpoint(sharded))
    assert f"2 of 3 weight files are missing: {first.name}, {last.name}" in message


@pytest.mark.parametrize("cut_bytes", [1, 5000])
def test_a_truncated_shard_is_named_with_both_sizes(sharded: Path, cut_bytes):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(size - cut_bytes)
    message = message_of(lambda: open_checkpoint(sharded))
    assert f"{shard} is truncated: {size - cut_bytes} bytes, expected {size}" in message


@pytest.mark.parametrize("size", [0, 3, 8, 200])
def test_a_shard_cut_inside_its_header_is_named(sharded: Path, size):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    with shard.open("r+b") as file:
        file.truncate(size)
    assert f"{shard} is not a readable safetensors file" in message_of(lambda: open_checkpoint(sharded))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/model.safetensors"])
def test_an_index_cannot_name_files_outside_its_directory(sharded: Path, name):
    index = json.loads((sharded / INDEX_FILE).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (sharded / INDEX_FILE).write_text(json.dumps(index))
    message = message_of(lambda: open_checkpoint(sharded))
    assert "outside its directory" in message
    assert name in message


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_an_index_cannot_name_a_directory(sharded: Path, name):
    index = json.loads((sharded / INDEX_FILE).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (sharded / INDEX_FILE).write_text(json.dumps(index))
    assert str(sharded) in message_of(lambda: open_checkpoint(sharded))


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_named(sharded: Path, index):
    (sharded / INDEX_FILE).write_text(index)
    assert INDEX_FILE in message_of(lambda: open_checkpoint(sharded))


def test_a_directory_in_place_of_a_weight_file_is_refused(single: Path):
    (single / SINGLE_FILE).unlink()
    (single / SINGLE_FILE).mkdir()
    assert "not a readable safetensors file" in message_of(lambda: open_checkpoint(single))


def test_buffers_of_whole_numbers_that_are_known_are_passed_over_and_others_named(single: Path):
    known: Tensors = {
        "model.embed_tokens.position_ids": np.arange(8),
        "visual.position_ids": np.arange(8, dtype=np.int32),
        "model.rotary_emb.inv_freq": np.ones(4),  # float64
    }
    rewrite(single, lambda tensors: tensors.update(known))
    checkpoint = open_checkpoint(single)
    assert not checkpoint.notes
    assert checkpoint.config_changes == {}
    strange: Tensors = {
        "model.layers.0.steps": np.arange(3),
        "visual.is_ready": np.array([True]),
        "visual.scales": np.ones(2),
        "visual.codes": np.ones(2, np.uint16),
    }
    rewrite(single, lambda tensors: tensors.update(strange))
    message = message_of(lambda: open_checkpoint(single))
    assert all(f"{name}: not part of Qwen2-VL" in message for name in strange)
    assert "position_ids" not in message
