"""The typed configuration of a model: sizes of both towers, rotary embedding, and the tokens that join them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from export.quantization.scheme import Scheme

KvCachePrecision: TypeAlias = Literal["int8", "fp8"]
"""Of cached keys and values in 8 bits; "fp8" is E4M3."""

KV_CACHE_DTYPES: Mapping[KvCachePrecision, str] = {"int8": "int8", "fp8": "float8_e4m3fn"}
"""What the cache's codes are, by precision."""

KV_CACHE_KEY = "kv_cache_precision"
"""Of a bundle's `config.json`, where the cache is kept in 8 bits."""


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
class YarnConfig:
    """YaRN (arXiv 2309.00071): rotary frequencies stretched for contexts longer than the training's."""

    factor: float
    """How many times longer; low frequencies are divided by it, high ones stay."""
    original_max_position_embeddings: int
    attention_factor: float
    """On rotated queries and on rotated keys: their scores grow by its square."""
    beta_fast: float = 32.0
    """A frequency that turns at least so often within the original context stays."""
    beta_slow: float = 1.0
    """One that turns at most so often is divided by the whole factor."""
    truncate: bool = True
    """Whether the bounds of the blend are rounded outwards to whole frequencies."""


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
    """The longest context in tokens, YaRN's stretch included."""
    yarn: YarnConfig | None = None
    """None: frequencies as trained."""
    kv_cache: KvCachePrecision | None = None
    """How a bundle's graphs keep cached keys and values; None: in the dtype that they compute in."""
    rank: int = 0
    """Of a tensor-parallel group, whose part of the decoder this is; see `num_ranks`."""
    num_ranks: int = 1
    """Above 1, the heads and `intermediate_size` are one rank's, of as many; `vocab_size` stays the whole's."""

    @property
    def tokens_of_rank(self) -> int:
        """Rows of the vocabulary that a rank has, the same number on each: all of them where there is one."""
        return -(-self.vocab_size // self.num_ranks)


@dataclass(frozen=True)
class ModelConfig:
    """A vision-language model: both towers, the ids of the tokens that join them, the weights' dtype."""

    vision: VisionConfig
    decoder: DecoderConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    dtype: str | None
    """As `config.json` says; None: it leaves that to the weights."""
    quantization: Scheme | None = None
    """How the linear layers of a quantized checkpoint are stored; None: in floating point, or as a bundle has them."""
    model_type: str = "qwen2_vl"
    """Of the family that it belongs to."""
