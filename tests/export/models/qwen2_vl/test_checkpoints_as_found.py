"""Checkpoints whose files say two things at once: the reference decides as Transformers 5.23 does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding

from examples.random_checkpoint import Sizes, nested_config, published_config, write_checkpoint
from export.checkpoint.config import config_from_json
from export.models.qwen2_vl.decoder import mrope_tables
from export.models.qwen2_vl.model import load_reference
from tests.support import peers

TOKENS = np.random.default_rng(3).integers(0, 400, 40)
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}


def logits_of(checkpoint: Path) -> np.ndarray:
    """Of every token of a text, by our reference: [S, vocab]."""
    model = load_reference(checkpoint)
    tokens = torch.from_numpy(TOKENS)[None]
    positions = torch.arange(len(TOKENS), dtype=torch.int32).expand(3, 1, -1)
    zero, length = torch.zeros(1, dtype=torch.int64), torch.tensor([len(TOKENS)])
    rows = torch.zeros(0, model.config.decoder.hidden_size)
    index = torch.arange(len(TOKENS))[None]
    logits, _ = model.decode(tokens, rows, positions, zero, length, index, model.new_cache(1, len(TOKENS)))
    return logits[0].numpy()


def peers_logits(checkpoint: Path) -> np.ndarray:
    return peers.load_peer(checkpoint)(input_ids=torch.from_numpy(TOKENS)[None]).logits[0].numpy()


def edit_config(checkpoint: Path, **changes: Any) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_as_transformers(checkpoint: Path) -> None:
    expected = peers_logits(checkpoint)
    assert np.abs(logits_of(checkpoint) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("stored", ["differs", "equal", "alone"])
def test_a_head_beside_the_flag_that_says_tied(tmp_path: Path, stored):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", dtype="float32")
    tensors = load_file(checkpoint / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding * np.float32(0.5) + 1 if stored == "differs" else embedding
    if stored == "alone":
        del tensors["model.embed_tokens.weight"]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert_as_transformers(checkpoint)


def test_the_smallest_relative_with_its_own_widths(tmp_path: Path):
    """896 wide, 14 heads of 64 over 2: seven queries a key, where the other shapes have one, two, six or eight."""
    sizes: dict[str, Any] = {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    }
    assert_as_transformers(write_checkpoint(tmp_path / "checkpoint", dtype="float32", **sizes))


@pytest.mark.parametrize("place", ["root", "text_config"])
def test_the_flag_in_either_place_ties(tmp_path: Path, place):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", dtype="float32", layout="nested")
    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    inner = {"text_config": text | {"tie_word_embeddings": place == "text_config"}}
    edit_config(checkpoint, tie_word_embeddings=place == "root", **inner)
    assert_as_transformers(checkpoint)


@pytest.mark.parametrize("layout", ["published", "nested"])
def test_yarn_changes_what_the_model_says_and_says_what_transformers_does(tmp_path: Path, layout):
    arguments: dict[str, Any] = {"dtype": "float32", "layout": layout}
    plain = write_checkpoint(tmp_path / "plain", **arguments)
    stretched = write_checkpoint(tmp_path / "stretched", yarn=YARN, **arguments)
    assert_as_transformers(stretched)
    assert np.abs(logits_of(stretched) - logits_of(plain)).max() > 0.1


@pytest.mark.parametrize("make_config", [published_config, nested_config])
@pytest.mark.parametrize(
    "yarn",
    [
        YARN,
        {"factor": 4.0, "original_max_position_embeddings": 32768},
        {"factor": 2.5},
        {"factor": 1.0, "original_max_position_embeddings": 32768},
        {**YARN, "truncate": False},
        {**YARN, "beta_fast": 16, "beta_slow": 2.0},
        {**YARN, "attention_factor": 1.5},
        {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
        {**YARN, "mscale": 0.7},
        {**YARN, "beta_fast": 1, "beta_slow": 1, "truncate": False},
        {"factor": None, "original_max_position_embeddings": 8192},
    ],
    ids=lambda yarn: " ".join(f"{key}={value}" for key, value in yarn.items()),
)
@pytest.mark.parametrize("sizes", [{"hidden_size": 1536, "num_attention_heads": 12}, {"rope_theta": 1e4}])
def test_yarns_tables_are_transformers_bit_for_bit(sizes, yarn, make_config):
    content = make_config(Sizes(yarn=yarn, **sizes), "float32")
    decoder = config_from_json(content).decoder
    peers_config: Any = Qwen2VLConfig(**content).text_config
    peer = Qwen2VLRotaryEmbedding(peers_config)
    frequencies, _ = mrope_tables(decoder)
    assert torch.equal(frequencies, peer.inv_freq)
    assert decoder.yarn is not None
    assert decoder.yarn.attention_factor == peer.attention_scaling
