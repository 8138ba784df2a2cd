"""The small model's directory: its sizes, and the files of a Hugging Face checkpoint."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from examples.random_checkpoint import (
    SPECIAL_TOKENS,
    Sizes,
    published_config,
    special_id,
    tokenizer_config,
)
from examples.tiny.vocabulary import num_trained_tokens, train_tokenizer
from export.checkpoint.tensors import SINGLE_FILE

MAX_TOKENS_PER_PICTURE = 256
FILES = Path(__file__).parents[1] / "checkpoint_files"


def tiny_sizes(num_tokens: int) -> Sizes:
    """Every mechanism of the family at a size that two CPU cores can train.

    A small rope_theta: the published 1e6 is made for contexts of 32,768 tokens, and leaves the width section (the
    slowest frequencies) blind to steps of one column. Still smaller ones leave no channel slow enough to compare what
    two distant tokens hold: at 3 the model did not learn to copy.
    """
    return Sizes(
        vocab_size=num_tokens + 16,
        hidden_size=WIDTH,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=3,
        mrope_section=(1, 1, 14),
        rope_theta=ROPE_THETA,
        max_position_embeddings=2048,
        vision_depth=4,
        vision_embed_dim=160,
        vision_num_heads=5,
        vision_mlp_ratio=3,
    )


WIDTH = 192
ROPE_THETA = 10000.0


def write_config_files(directory: Path) -> None:
    """Everything but the weights: config, tokenizer, chat template, picture and video settings, generation."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    sizes = tiny_sizes(num_trained_tokens(tokenizer))
    pad, end = special_id(sizes, "endoftext"), special_id(sizes, "im_end")
    assert sizes.first_special_id == num_trained_tokens(tokenizer), SPECIAL_TOKENS
    generation = {"bos_token_id": pad, "pad_token_id": pad, "eos_token_id": [end, pad], "do_sample": False}
    _write_json(directory / "config.json", published_config(sizes, "bfloat16"))
    _write_json(directory / "generation_config.json", generation)
    _write_json(directory / "tokenizer.json", tokenizer)
    _write_json(directory / "tokenizer_config.json", tokenizer_config(sizes))
    picture = json.loads((FILES / "preprocessor_config.json").read_text(encoding="utf-8"))
    picture |= {"min_pixels": 28 * 28, "max_pixels": MAX_TOKENS_PER_PICTURE * 28 * 28}
    _write_json(directory / "preprocessor_config.json", picture)
    video = {key: value for key, value in picture.items() if key != "image_processor_type"}
    video |= {"video_processor_type": "Qwen2VLVideoProcessor", "fps": 2.0, "min_frames": 2, "max_frames": 64}
    _write_json(directory / "video_preprocessor_config.json", video)


def write_weights(directory: Path, state: Mapping[str, Tensor]) -> None:
    """model.safetensors in bfloat16, by published names; the tied head is left out."""
    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in state.items()
        if name != "lm_head.weight"
    }
    save_file(tensors, directory / SINGLE_FILE, metadata={"format": "pt"})


def read_weights(checkpoints: Sequence[Path]) -> dict[str, Tensor]:
    """The weights of a checkpoint by published names; a second one gives the vision encoder."""
    tensors: dict[str, Tensor] = {}
    for prefix, checkpoint in zip(("", "visual."), checkpoints, strict=False):
        found = load_file(checkpoint / SINGLE_FILE)
        tensors |= {name: tensor for name, tensor in found.items() if name.startswith(prefix)}
    return tensors


def checkpoint_argument(text: str) -> Path:
    """A command line's checkpoint: refused at once, before anything is written or trained, if it has no weights."""
    if not (Path(text) / SINGLE_FILE).is_file():
        raise argparse.ArgumentTypeError(
            f"{text} has no {SINGLE_FILE}: expected a small checkpoint's directory."
        )
    return Path(text)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
