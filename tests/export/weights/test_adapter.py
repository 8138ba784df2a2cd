from pathlib import Path

import numpy as np
import pytest

from export.errors import UserError
from export.weights.adapter import read_adapter
from tests.support.adapters import factors, write_adapter

MODULE = "model.layers.0.self_attn.q_proj"
ONE = factors({MODULE: (8, 6)})


def message_of(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_adapter(directory)
    assert str(directory) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "module",
    ["model.layers.0.self_attn.q_proj", "model.language_model.layers.0.self_attn.q_proj"],
    ids=["as published", "as named since Transformers 4.52"],
)
def test_a_change_is_known_by_the_published_name(tmp_path: Path, module):
    adapter = read_adapter(write_adapter(tmp_path / "adapter", factors({module: (8, 6)})))
    (name,) = adapter.low_rank
    assert name == f"{MODULE}.weight"
    assert adapter.low_rank[name].shape == (8, 6)
    assert adapter.low_rank[name].scaling == 4


@pytest.mark.parametrize("suffix", [".default", ".my_adapter"])
def test_names_that_keep_the_adapters_own_name_are_read(tmp_path: Path, suffix):
    tensors = {
        name.replace(".lora_A", f".lora_A{suffix}").replace(".lora_B", f".lora_B{suffix}"): array
        for name, array in ONE.items()
    }
    tensors[f"base_model.model.lm_head.modules_to_save{suffix}.weight"] = np.ones((3, 6), np.float32)
    adapter = read_adapter(write_adapter(tmp_path / "adapter", tensors))
    assert list(adapter.low_rank) == [f"{MODULE}.weight"]
    assert list(adapter.replaced) == ["lm_head.weight"]


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, 4.0),
        ({"lora_alpha": 6}, 1.5),
        ({"use_rslora": True}, 8.0),
        ({"alpha_pattern": {"q_proj": 8}}, 2.0),
        ({"alpha_pattern": {r"layers\.0\..*q_proj": 8, "q_proj": 2}}, 2.0),
        ({"alpha_pattern": {"proj": 8}}, 4.0),
        ({"alpha_pattern": {"k_proj": 8}}, 4.0),
        ({"alpha_pattern": {"q_proj": None}}, 4.0),
        ({"alpha_pattern": {"q_proj": 8}, "use_rslora": True}, 4.0),
    ],
)
def test_the_scaling_is_pefts(tmp_path: Path, config, scaling):
    adapter = read_adapter(write_adapter(tmp_path / "adapter", ONE, **config))
    assert adapter.low_rank[f"{MODULE}.weight"].scaling == scaling


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', not LORA"),
        ({"use_dora": True}, "use_dora of adapter_config.json would change the merge"),
        ({"bias": "all"}, "bias is 'all', not none"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"lora_bias": True, "layer_replication": [[0, 1]]}, "layer_replication, lora_bias of adapter_config.json"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"something_new": 2}, "something_new of adapter_config.json"),
        ({"lora_alpha": "16"}, "lora_alpha must be a positive number, found '16'"),
        ({"alpha_pattern": {"(": 3}}, "'(' is no regular expression"),
        ({"use_rslora": 1}, "use_rslora must be true or false, found 1"),
    ],
)  # fmt: skip
def test_a_variant_that_is_not_merged_is_named(tmp_path: Path, config, expected):
    message = message_of(write_adapter(tmp_path / "adapter", ONE, **config))
    assert expected in message
    assert "merge_and_unload()" in message


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({f"base_model.model.{MODULE}.lora_A.weight": np.ones((4, 6))}, f"{MODULE}: has lora_A alone"),
        (
            {
                f"base_model.model.{MODULE}.lora_A.weight": np.ones((4, 6)),
                f"base_model.model.{MODULE}.lora_B.weight": np.ones((8, 3)),
            },
            f"{MODULE}: lora_A [4, 6] and lora_B [8, 3] do not multiply",
        ),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": np.ones((4, 6))}, "lora_embedding_A: LoRA of this"),
        ({f"base_model.model.{MODULE}.lora_magnitude_vector": np.ones(4)}, "lora_magnitude_vector: LoRA of this"),
        ({}, "it holds no tensors"),
    ],
)  # fmt: skip
def test_tensors_that_are_no_pairs_are_named(tmp_path: Path, tensors, expected):
    arrays = {name: array.astype(np.float32) for name, array in tensors.items()}
    assert expected in message_of(write_adapter(tmp_path / "adapter", arrays))


def test_a_directory_without_an_adapter_is_named(tmp_path: Path):
    assert "is no PEFT adapter" in message_of(tmp_path)
