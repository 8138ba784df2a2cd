"""What does a checkpoint's `config.json` say about the model?

Reads every spelling in use: flat as published on the hub, nested (`text_config`, `rope_parameters`) as
Transformers 5 writes it, `in_chans` or `in_channels`, `rope_scaling` typed "mrope" or re-saved as "default".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import UserError
from export.json_object import read_json_object

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class VisionConfig:
    """The vision encoder's sizes, under Hugging Face's names."""

    depth: int
    embed_dim: int
    num_heads: int
    mlp_ratio: float
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    hidden_size: int
    """Width of a merged token: the decoder's hidden size."""

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def intermediate_size(self) -> int:
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def patch_values(self) -> int:
        """Values in one patch: 3 * 2 * 14 * 14 = 1176 for the published checkpoints."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def patches_per_token(self) -> int:
        return self.spatial_merge_size**2


@dataclass(frozen=True)
class DecoderConfig:
    """The language model's sizes, under Hugging Face's names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    """How many of the head_dim / 2 rotary frequencies follow the temporal, height and width axis."""
    tie_word_embeddings: bool
    max_position_embeddings: int


@dataclass(frozen=True)
class ModelConfig:
    """A Qwen2-VL model: both towers, the ids of the tokens that join them, the weights' dtype."""

    vision: VisionConfig
    decoder: DecoderConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    dtype: str


def load_config(directory: Path) -> ModelConfig:
    """Read `config.json` in a checkpoint's directory.

    Raises:
        UserError: the file is missing, is no JSON object, or describes no Qwen2-VL model; all problems at once.
    """
    return config_from_json(
        read_json_object(directory / "config.json"), source=str(directory / "config.json")
    )


def config_from_json(content: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """Build the typed configuration from a parsed `config.json`.

    Raises:
        UserError: an architecture other than Qwen2-VL, quantized weights, or missing and unfitting values.
    """
    model_type = content.get("model_type")
    if model_type != "qwen2_vl":
        raise UserError(
            f"{source}: model_type is {model_type!r}, expected 'qwen2_vl'. qv-export serves the Qwen2-VL family only."
        )
    if "quantization_config" in content:
        method = _mapping(content, "quantization_config").get("quant_method", "unknown")
        raise UserError(
            f"{source}: the weights are quantized (quant_method {method!r}). Start from the unquantized checkpoint."
        )
    reader = _Reader(source)
    text: Mapping[str, Any] = {**content, **_mapping(content, "text_config")}
    decoder = _decoder_config(reader, text)
    vision = _vision_config(reader, _mapping(content, "vision_config"), decoder.hidden_size)
    dtype = str(content.get("dtype") or content.get("torch_dtype") or text.get("dtype") or "bfloat16")
    reader.require(dtype in DTYPES, f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    config = ModelConfig(
        vision=vision,
        decoder=decoder,
        image_token_id=reader.integer(content, "image_token_id", 151655, minimum=0),
        video_token_id=reader.integer(content, "video_token_id", 151656, minimum=0),
        vision_start_token_id=reader.integer(content, "vision_start_token_id", 151652, minimum=0),
        vision_end_token_id=reader.integer(content, "vision_end_token_id", 151653, minimum=0),
        dtype=dtype,
    )
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        token_id = getattr(config, name)
        reader.require(
            token_id < decoder.vocab_size,
            f"{name} is {token_id}, outside the vocabulary of {decoder.vocab_size}",
        )
    reader.raise_problems()
    return config


# Defaults of Transformers' Qwen2VLVisionConfig: a re-saved config.json may drop all values that equal them.
_VISION_DEFAULTS = {
    "depth": 32,
    "embed_dim": 1280,
    "num_heads": 16,
    "patch_size": 14,
    "temporal_patch_size": 2,
}


def _vision_config(reader: "_Reader", content: Mapping[str, Any], decoder_hidden_size: int) -> VisionConfig:
    sizes = {name: reader.integer(content, name, default) for name, default in _VISION_DEFAULTS.items()}
    config = VisionConfig(
        mlp_ratio=reader.number(content, "mlp_ratio", 4),
        in_channels=reader.integer(content, "in_chans", reader.integer(content, "in_channels", 3)),
        spatial_merge_size=reader.integer(content, "spatial_merge_size", 2),
        # A checkpoint may leave this at another size's value; the merger's own weights follow the decoder.
        hidden_size=decoder_hidden_size,
        **sizes,
    )
    reader.require(
        config.embed_dim % (4 * config.num_heads) == 0,
        f"vision_config.embed_dim {config.embed_dim} must be a multiple of 4 * num_heads ({config.num_heads}): "
        "the 2-D rotary splits a head into row and column halves",
    )
    return config


def _decoder_config(reader: "_Reader", content: Mapping[str, Any]) -> DecoderConfig:
    rope = {**_mapping(content, "rope_scaling"), **_mapping(content, "rope_parameters")}
    hidden_size = reader.integer(content, "hidden_size")
    num_attention_heads = reader.integer(content, "num_attention_heads")
    head_dim = reader.integer(content, "head_dim", hidden_size // max(num_attention_heads, 1))
    config = DecoderConfig(
        vocab_size=reader.integer(content, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=reader.integer(content, "intermediate_size"),
        num_hidden_layers=reader.integer(content, "num_hidden_layers"),
        num_attention_heads=num_attention_heads,
        num_key_value_heads=reader.integer(content, "num_key_value_heads", num_attention_heads),
        head_dim=head_dim,
        rms_norm_eps=reader.number(content, "rms_norm_eps", 1e-5),
        rope_theta=reader.number({**content, **rope}, "rope_theta", 1_000_000.0),
        mrope_section=reader.sections(rope, head_dim),
        tie_word_embeddings=bool(content.get("tie_word_embeddings", False)),
        max_position_embeddings=reader.integer(content, "max_position_embeddings", 32768),
    )
    reader.require(
        config.num_attention_heads % max(config.num_key_value_heads, 1) == 0,
        f"num_attention_heads {config.num_attention_heads} must be a multiple of "
        f"num_key_value_heads {config.num_key_value_heads}",
    )
    reader.require(
        content.get("hidden_act", "silu") == "silu", f"hidden_act is {content.get('hidden_act')!r}, not silu"
    )
    reader.require(
        not content.get("use_sliding_window", False),
        "use_sliding_window is true: sliding attention is not supported",
    )
    return config


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    return value if isinstance(value, Mapping) else {}


class _Reader:
    """Collects every problem of one file, so that the user mends them in one go."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[str] = []

    def require(self, condition: bool, problem: str) -> None:
        if not condition:
            self.problems.append(problem)

    def integer(
        self, content: Mapping[str, Any], key: str, default: int | None = None, minimum: int = 1
    ) -> int:
        value = content.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and value >= minimum:
            return value
        self.problems.append(f"{key} must be an integer of at least {minimum}, found {value!r}")
        return minimum

    def number(self, content: Mapping[str, Any], key: str, default: float) -> float:
        value = content.get(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf"):
            return float(value)
        self.problems.append(f"{key} must be a positive number, found {value!r}")
        return default

    def sections(self, rope: Mapping[str, Any], head_dim: int) -> tuple[int, int, int]:
        match rope.get("mrope_section"):
            case [int(temporal), int(height), int(width)] if min(temporal, height, width) >= 0 and (
                2 * (temporal + height + width) == head_dim
            ):
                return (temporal, height, width)
            case other:
                self.problems.append(
                    f"mrope_section must be three integers that sum to head_dim / 2 = {head_dim // 2}, found {other!r}"
                )
                return (head_dim // 2, 0, 0)

    def raise_problems(self) -> None:
        if self.problems:
            raise UserError(
                f"{self.source} does not describe a Qwen2-VL model:\n- " + "\n- ".join(self.problems)
            )
