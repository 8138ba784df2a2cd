"""Writes a Qwen2-VL checkpoint with random weights: the real architecture without a download.

    python examples/random_checkpoint.py OUT [--size tiny|2b|7b|72b] [--dtype bfloat16] [--sparse]

Writes a Hugging Face directory of the real architecture: config, safetensors, tokenizer, chat template and
preprocessor settings. Everything loads as a published checkpoint does, but the answers are noise.
Nothing here needs torch; memory stays below one small block of one tensor.
"""

import argparse
import json
import math
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

Layout = Literal["published", "nested"]
Shape = tuple[int, ...]
Shapes = dict[str, Shape]


@dataclass(frozen=True)
class Sizes:
    """The numbers that tell one model of the family from another; `vision_*` belong to the vision encoder."""

    vocab_size: int = 512
    hidden_size: int = 128
    intermediate_size: int = 192
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    tie_word_embeddings: bool = True
    mrope_section: tuple[int, int, int] | None = None
    """None: a quarter of the frequencies for time, the rest in halves, as published (16, 24, 24 of 64)."""
    rope_theta: float = 1_000_000.0
    yarn: Mapping[str, Any] | None = None
    """YaRN's keys, such as `factor`; None: frequencies as trained."""
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32768
    vision_depth: int = 2
    vision_embed_dim: int = 64
    vision_num_heads: int = 2
    vision_mlp_ratio: int = 4

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def sections(self) -> tuple[int, int, int]:
        if self.mrope_section is not None:
            return self.mrope_section
        spatial = self.head_dim // 2 * 3 // 8
        return (self.head_dim // 2 - 2 * spatial, spatial, spatial)

    @property
    def first_special_id(self) -> int:
        """Id of <|endoftext|>: 151643 in published checkpoints, near the end of a small vocabulary."""
        return min(151643, self.vocab_size - 16)


# Published shapes: arXiv 2409.12191 table 1 and the hub's config.json files.
PUBLISHED_VISION: dict[str, Any] = {"vision_depth": 32, "vision_embed_dim": 1280, "vision_num_heads": 16}
SIZES = {
    "tiny": Sizes(),
    "2b": Sizes(151936, 1536, 8960, 28, 12, 2, **PUBLISHED_VISION),
    "7b": Sizes(152064, 3584, 18944, 28, 28, 4, tie_word_embeddings=False, **PUBLISHED_VISION),
    "72b": Sizes(152064, 8192, 29568, 80, 64, 8, tie_word_embeddings=False, **PUBLISHED_VISION),
}
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
SPECIAL_TOKENS = tuple(
    f"<|{name}|>"
    for name in (
        *("endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end"),
        *("quad_start", "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"),
    )
)
TOKEN_FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
FILES = Path(__file__).parent / "checkpoint_files"
HUB_SHARD_BYTES = 4_000_000_000
BLOCK_VALUES = 1 << 22  # random numbers drawn at once: 16 MiB of float32


def write_checkpoint(
    directory: Path,
    *,
    size: str = "tiny",
    dtype: str = "bfloat16",
    seed: int = 0,
    layout: Layout = "published",
    shards: int | None = None,
    sparse: bool = False,
    **overrides: Any,
) -> Path:
    """Write a random Qwen2-VL checkpoint and return its directory.

    The weights depend on seed, tensor name and shape alone: layouts and shard counts hold the same model.

    Args:
        directory: made if missing.
        size: a key of SIZES.
        dtype: float32, float16 or bfloat16, of weights and config.
        seed: another seed gives other weights.
        layout: "published" has a flat config and `visual.*`, `model.*` keys as on the hub; "nested" has the
            config of Transformers 5 and its in-memory keys `model.visual.*`, `model.language_model.*`.
        shards: number of weight files; None cuts at 4 GB as the hub does.
        sparse: leave the weights zero in files that take no disk space: for shapes too large to draw.
        **overrides: fields of Sizes that differ from `size`, such as `num_hidden_layers=4`.

    Raises:
        FileExistsError: the directory holds weights already: noise must not replace a real model.
    """
    if any(directory.glob("*.safetensors*")):
        raise FileExistsError(
            f"{directory} holds a checkpoint already: name another directory or remove it first."
        )
    sizes = replace(SIZES[size], **overrides)
    directory.mkdir(parents=True, exist_ok=True)
    make_config = published_config if layout == "published" else nested_config
    _write_json(directory / "config.json", make_config(sizes, dtype))
    _write_json(directory / "generation_config.json", generation_config(sizes))
    shutil.copyfile(FILES / "preprocessor_config.json", directory / "preprocessor_config.json")
    _write_json(directory / "tokenizer_config.json", tokenizer_config(sizes))
    _write_json(directory / "tokenizer.json", train_tokenizer(sizes.first_special_id))
    write_weights(directory, sizes, dtype, seed=seed, layout=layout, shards=shards, sparse=sparse)
    return directory


# --- config files ---------------------------------------------------------------------------------


def special_id(sizes: Sizes, name: str) -> int:
    return sizes.first_special_id + SPECIAL_TOKENS.index(f"<|{name}|>")


def token_ids(sizes: Sizes) -> dict[str, int]:
    """The ids that config.json states, at the top level in both layouts."""
    placeholders = {f"{kind}_token_id": special_id(sizes, f"{kind}_pad") for kind in ("image", "video")}
    ends = {f"vision_{end}_token_id": special_id(sizes, f"vision_{end}") for end in ("start", "end")}
    return placeholders | ends


DECODER_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "rms_norm_eps", "max_position_embeddings"),
)
DECODER_CONSTANTS = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_cache": True,
}
# As published: a window is stated and not used.
INERT_WINDOW = {"use_sliding_window": False, "sliding_window": 32768}


def decoder_config(sizes: Sizes) -> dict[str, Any]:
    ends = {"bos_token_id": special_id(sizes, "endoftext"), "eos_token_id": special_id(sizes, "im_end")}
    window = {**INERT_WINDOW, "max_window_layers": sizes.num_hidden_layers}
    return {name: getattr(sizes, name) for name in DECODER_FIELDS} | DECODER_CONSTANTS | ends | window


def vision_config(sizes: Sizes) -> dict[str, Any]:
    return {
        "depth": sizes.vision_depth,
        "embed_dim": sizes.vision_embed_dim,
        "hidden_size": sizes.hidden_size,
        "mlp_ratio": sizes.vision_mlp_ratio,
        "num_heads": sizes.vision_num_heads,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def published_config(sizes: Sizes, dtype: str) -> dict[str, Any]:
    """config.json as on the hub: decoder fields at the top level, `in_chans`, `rope_scaling` typed "mrope"."""
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        **decoder_config(sizes),
        **token_ids(sizes),
        "vision_token_id": special_id(sizes, "vision_pad"),
        "rope_scaling": {
            "type": "mrope" if sizes.yarn is None else "yarn",
            "mrope_section": list(sizes.sections),
            **(sizes.yarn or {}),
        },
        "rope_theta": sizes.rope_theta,
        "tie_word_embeddings": sizes.tie_word_embeddings,
        "torch_dtype": dtype,
        "transformers_version": "4.41.2",
        "vision_config": {**vision_config(sizes), "in_chans": 3, "spatial_patch_size": 14},
    }


def nested_config(sizes: Sizes, dtype: str) -> dict[str, Any]:
    """config.json as Transformers 5 re-saves it: `text_config`, `rope_parameters`, `in_channels`, `dtype`."""
    rope = {
        "mrope_section": list(sizes.sections),
        "rope_theta": sizes.rope_theta,
        "rope_type": "default" if sizes.yarn is None else "yarn",
        **(sizes.yarn or {}),
    }
    text = {"model_type": "qwen2_vl_text", "dtype": dtype, **decoder_config(sizes), "rope_parameters": rope}
    kind = {"model_type": "qwen2_vl_vision", "hidden_act": "quick_gelu"}
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "dtype": dtype,
        **token_ids(sizes),
        "tie_word_embeddings": sizes.tie_word_embeddings,
        "text_config": text,
        "vision_config": {**kind, **vision_config(sizes), "in_channels": 3},
    }


def generation_config(sizes: Sizes) -> dict[str, Any]:
    pad, end = special_id(sizes, "endoftext"), special_id(sizes, "im_end")
    ids = {"bos_token_id": pad, "pad_token_id": pad, "eos_token_id": [end, pad]}
    return {**ids, "do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.001}


# --- tokenizer ------------------------------------------------------------------------------------

# How Qwen2 splits text before byte-pair merging: contractions, words, single digits, punctuation, line ends.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer_config(sizes: Sizes) -> dict[str, Any]:
    added = enumerate(SPECIAL_TOKENS, start=sizes.first_special_id)
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): {"content": token, **TOKEN_FLAGS} for i, token in added},
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": (FILES / "chat_template.jinja").read_text(encoding="utf-8"),
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": sizes.max_position_embeddings,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def train_tokenizer(num_tokens: int) -> Any:
    """The content of tokenizer.json: a byte-level BPE of exactly `num_tokens` tokens, then the special ones.

    A few sentences do not yield 151,643 merges. The rest are joined pairs of trained tokens that no merge
    reaches: never encoded, but a random model that picks one still decodes to text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=num_tokens, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([str(FILES / "tokenizer_sentences.txt")], trainer)
    content = json.loads(tokenizer.to_str())
    vocabulary: dict[str, int] = content["model"]["vocab"]
    trained = sorted(vocabulary, key=lambda token: vocabulary[token])
    for first, second in product(trained, trained):
        if len(vocabulary) == num_tokens:
            break
        vocabulary.setdefault(first + second, len(vocabulary))
    added = enumerate(SPECIAL_TOKENS, start=num_tokens)
    content["added_tokens"] = [{"id": i, "content": token, **TOKEN_FLAGS} for i, token in added]
    return content


# --- weights --------------------------------------------------------------------------------------


def tensor_shapes(sizes: Sizes) -> Shapes:
    """Every tensor under its published name."""
    return {**_vision_shapes(sizes), **_decoder_shapes(sizes)}


def _modules(prefix: str, weights: Shapes, bias: bool) -> Shapes:
    shapes = {f"{prefix}.{name}.weight": shape for name, shape in weights.items()}
    return shapes | {f"{prefix}.{name}.bias": shape[:1] for name, shape in weights.items() if bias}


def _vision_shapes(sizes: Sizes) -> Shapes:
    width, merged = sizes.vision_embed_dim, 4 * sizes.vision_embed_dim
    inner = width * sizes.vision_mlp_ratio
    attention: Shapes = {"norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    mlp: Shapes = {"norm2": (width,), "mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    merger: Shapes = {"ln_q": (width,), "mlp.0": (merged, merged), "mlp.2": (sizes.hidden_size, merged)}
    shapes: Shapes = {"visual.patch_embed.proj.weight": (width, 3, 2, 14, 14)}
    for i in range(sizes.vision_depth):
        shapes |= _modules(f"visual.blocks.{i}", attention | mlp, bias=True)
    return shapes | _modules("visual.merger", merger, bias=True)


def _decoder_shapes(sizes: Sizes) -> Shapes:
    width, inner = sizes.hidden_size, sizes.intermediate_size
    query, key = (n * sizes.head_dim for n in (sizes.num_attention_heads, sizes.num_key_value_heads))
    biased: Shapes = {"q_proj": (query, width), "k_proj": (key, width), "v_proj": (key, width)}
    norms: Shapes = {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    mlp: Shapes = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    vocabulary: Shape = (sizes.vocab_size, width)
    shapes: Shapes = {"model.embed_tokens.weight": vocabulary}
    for i in range(sizes.num_hidden_layers):
        layer = f"model.layers.{i}"
        shapes |= _modules(layer, norms, bias=False) | _modules(f"{layer}.mlp", mlp, bias=False)
        shapes |= _modules(f"{layer}.self_attn", biased, bias=True)
        shapes |= _modules(f"{layer}.self_attn", {"o_proj": (width, query)}, bias=False)
    shapes["model.norm.weight"] = (width,)
    return shapes if sizes.tie_word_embeddings else shapes | {"lm_head.weight": vocabulary}


def key_in_layout(name: str, layout: Layout) -> str:
    """Published name -> the key written to the file."""
    if layout == "published" or name.startswith("lm_head"):
        return name
    return (
        f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)
    )


def random_blocks(name: str, shape: Shape, seed: int) -> Iterator[np.ndarray]:
    """The tensor's values in flat float32 blocks.

    Weights have variance 1 / fan_in, so activations keep their scale at any depth; norm weights lie around 1.
    Biases are not zero: a dropped or swapped one must show. Queries and keys are 1.5 times as large, which peaks
    attention: at 1 it averages over random values to almost nothing, and greedy generation falls into one
    repeated token; at 2.5 the model is chaotic, and float32 rounding alone changes 0.4% of the largest value
    after 32 vision blocks (at 1.5: 1e-6).
    """
    generator = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    is_norm_weight = len(shape) == 1 and name.endswith("weight")
    scale = np.float32(0.1 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5)
    if name.endswith(("q_proj.weight", "k_proj.weight", "attn.qkv.weight")):
        scale *= np.float32(1.5)
    remaining = math.prod(shape)
    while remaining:
        block = generator.standard_normal(min(remaining, BLOCK_VALUES), dtype=np.float32) * scale
        remaining -= block.size
        yield block + np.float32(1) if is_norm_weight else block


def write_weights(
    directory: Path, sizes: Sizes, dtype: str, *, seed: int, layout: Layout, shards: int | None, sparse: bool
) -> None:
    """Write model.safetensors, or several files and their index."""
    shapes = tensor_shapes(sizes)
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    groups = _split_into_shards({name: math.prod(shape) * itemsize for name, shape in shapes.items()}, shards)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(groups, start=1):
        file = f"model-{i:05}-of-{len(groups):05}.safetensors" if len(groups) > 1 else "model.safetensors"
        _write_safetensors(
            directory / file,
            {name: shapes[name] for name in names},
            dtype,
            layout,
            seed=None if sparse else seed,
        )
        weight_map |= {key_in_layout(name, layout): file for name in names}
    if len(groups) > 1:
        total_bytes = itemsize * sum(math.prod(shape) for shape in shapes.values())
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        _write_json(directory / "model.safetensors.index.json", index)


def _split_into_shards(num_bytes: dict[str, int], shards: int | None) -> list[list[str]]:
    limit = HUB_SHARD_BYTES if shards is None else sum(num_bytes.values()) / shards
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in num_bytes.items():
        if groups[-1] and filled + size > limit and len(groups) != shards:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _write_safetensors(path: Path, shapes: Shapes, dtype: str, layout: Layout, *, seed: int | None) -> None:
    """8 bytes of header length, the JSON header, the tensors back to back; without a seed, sparse zeros."""
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        offsets = [offset, offset + math.prod(shape) * itemsize]
        entry = {"dtype": SAFETENSORS_DTYPES[dtype], "shape": list(shape), "data_offsets": offsets}
        header[key_in_layout(name, layout)] = entry
        offset = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if seed is None:
            file.truncate(8 + len(text) + offset)
            return
        for name, shape in shapes.items():
            for block in random_blocks(name, shape, seed):
                file.write(block.astype(DTYPES[dtype]).tobytes())


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a Qwen2-VL checkpoint with random weights.")
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", choices=("published", "nested"), default="published")
    parser.add_argument("--shards", type=int, help="number of weight files (default: one per 4 GB)")
    parser.add_argument("--sparse", action="store_true", help="zero weights in files that take no disk space")
    options = vars(parser.parse_args())
    try:
        directory = write_checkpoint(options.pop("out"), **options)
    except FileExistsError as error:
        sys.exit(str(error))
    print(f"{directory}: Qwen2-VL, size {options['size']}, RANDOM weights: its answers are noise.")


if __name__ == "__main__":
    main()
