"""What a Qwen2-VL checkpoint's `config.json` says about the model.

Reads every spelling in use: flat as published on the hub, nested (`text_config`, `rope_parameters`) as
Transformers 5 writes it, `in_chans` or `in_channels`, `rope_scaling` typed "mrope" or re-saved as "default".
"""

from collections.abc import Mapping
from typing import Any, cast

from export.dtypes import GRAPH_DTYPES
from export.errors import UserError
from export.models.configuration import (
    KV_CACHE_DTYPES,
    KV_CACHE_KEY,
    DecoderConfig,
    KvCachePrecision,
    ModelConfig,
    VisionConfig,
)
from export.models.keys import refuse_unread
from export.models.qwen2_vl.rope import read_rope
from export.models.section import Section
from export.quantization.read_scheme import read_scheme

# Defaults of Transformers' Qwen2VLVisionConfig: a re-saved config.json may drop all values that equal them.
_VISION_DEFAULTS = {
    "embed_dim": 1280,
    "num_heads": 16,
    "patch_size": 14,
    "temporal_patch_size": 2,
}
MOST_LAYERS = 1000
"""Many times the largest model's 80: a number past it is a mistake or an attack, and listing layers costs memory."""
_TOKEN_IDS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}

# In `vision_config`: the width of a merged token follows the decoder, the side of a patch has another name.
_INERT_VISION = ("hidden_size", "spatial_patch_size")
# Stated twice with different values this is sound: either flag ties, the table's own rows count, and a window is inert.
_DECIDED_ELSEWHERE = {"tie_word_embeddings", "vocab_size", "sliding_window", "max_window_layers"}


def read_config(content: Mapping[str, Any], source: str) -> ModelConfig:
    """Build the typed configuration from a parsed `config.json` whose `model_type` is "qwen2_vl".

    Raises:
        UserError: quantization that is not read; or all values that are missing, do not fit or are not computed.
    """
    problems: list[str] = []
    top = Section(content, problems)
    quantization = read_scheme(top.section("quantization_config"), source)
    nested = top.section("text_config")
    text = Section({**top.content, **nested.content}, problems)
    decoder = _decoder_config(text, ties=(top, nested))
    vision = top.section("vision_config")
    token_ids = {name: top.integer(name, default, minimum=0) for name, default in _TOKEN_IDS.items()}
    config = ModelConfig(
        vision=_vision_config(vision, decoder.hidden_size),
        decoder=decoder,
        dtype=_dtype(top, nested),
        image_token_id=token_ids["image_token_id"],
        video_token_id=token_ids["video_token_id"],
        vision_start_token_id=token_ids["vision_start_token_id"],
        vision_end_token_id=token_ids["vision_end_token_id"],
        quantization=quantization,
    )
    _refuse_contradictions(top, nested, text)
    refuse_unread(top, inert=text.asked())  # a flat file holds the decoder's keys beside its own
    refuse_unread(nested, inert={*text.asked(), *_TOKEN_IDS})
    refuse_unread(vision, inert=_INERT_VISION)
    for name, token_id in token_ids.items():
        if token_id >= decoder.vocab_size:
            top.problem(f"{name} is {token_id}, outside the vocabulary of {decoder.vocab_size}")
    if problems:
        raise UserError(f"{source} does not describe a Qwen2-VL model:\n- " + "\n- ".join(problems))
    return config


def _refuse_contradictions(top: Section, nested: Section, text: Section) -> None:
    """Transformers reads `text_config` alone where there is one: two values mean one forgotten edit."""
    for key in sorted(text.asked() & top.content.keys() & nested.content.keys() - _DECIDED_ELSEWHERE):
        if top.content[key] != nested.content[key]:
            top.problem(
                f"{key} {top.content[key]!r} contradicts text_config.{key} {nested.content[key]!r}: keep the one meant"
            )


def _dtype(top: Section, nested: Section) -> str | None:
    """The stated dtype; None where the file leaves it to the weights."""
    stated = top.get("dtype") or top.get("torch_dtype") or nested.get("dtype") or nested.get("torch_dtype")
    if stated is None or stated == "auto":
        return None
    dtype = str(stated).removeprefix("torch.")
    if dtype not in GRAPH_DTYPES:
        top.problem(f"dtype is {dtype!r}, expected one of {', '.join(GRAPH_DTYPES)}")
    return dtype


def _vision_config(vision: Section, decoder_hidden_size: int) -> VisionConfig:
    config = VisionConfig(
        depth=vision.integer("depth", 32, maximum=MOST_LAYERS),
        mlp_ratio=vision.number("mlp_ratio", 4),
        in_channels=vision.integer("in_chans", vision.integer("in_channels", 3)),
        spatial_merge_size=vision.integer("spatial_merge_size", 2),
        # A checkpoint may leave this at another size's value; the merger's own weights follow the decoder.
        hidden_size=decoder_hidden_size,
        **{name: vision.integer(name, default) for name, default in _VISION_DEFAULTS.items()},
    )
    if config.embed_dim % (4 * config.num_heads):
        vision.problem(
            f"embed_dim {config.embed_dim} must be a multiple of 4 * num_heads ({config.num_heads}): "
            "the 2-D rotary splits a head into row and column halves"
        )
    vision.one_of("hidden_act", ("quick_gelu",))
    rope = vision.section("rope_parameters")
    rope.one_of("rope_type", ("axial", "default"))
    rope.one_of("rope_theta", (10_000,))
    refuse_unread(rope)
    return config


def _decoder_config(text: Section, ties: tuple[Section, ...]) -> DecoderConfig:
    hidden_size = text.integer("hidden_size")
    num_attention_heads = text.integer("num_attention_heads")
    head_dim = text.integer("head_dim", hidden_size // max(num_attention_heads, 1))
    stated_positions = text.integer("max_position_embeddings", 32768)
    rope = read_rope(text, head_dim, stated_positions)
    stated_ties = [section.flag("tie_word_embeddings", False) for section in ties]
    stretched = rope.yarn.factor * rope.yarn.original_max_position_embeddings if rope.yarn else 0
    config = DecoderConfig(
        vocab_size=text.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=text.integer("intermediate_size"),
        num_hidden_layers=text.integer("num_hidden_layers", maximum=MOST_LAYERS),
        num_attention_heads=num_attention_heads,
        num_key_value_heads=text.integer("num_key_value_heads", num_attention_heads),
        head_dim=head_dim,
        rms_norm_eps=text.number("rms_norm_eps", 1e-5),
        rope_theta=rope.theta,
        mrope_section=rope.mrope_section,
        # As Transformers 5: files written before it said so in `text_config`, beside a default above.
        tie_word_embeddings=any(stated_ties),
        max_position_embeddings=max(stated_positions, int(stretched)),
        yarn=rope.yarn,
        kv_cache=_kv_cache(text),
    )
    if config.num_attention_heads % max(config.num_key_value_heads, 1):
        text.problem(
            f"num_attention_heads {config.num_attention_heads} must be a multiple of "
            f"num_key_value_heads {config.num_key_value_heads}"
        )
    text.one_of("hidden_act", ("silu", "swish"))
    _refuse_sliding_window(text, config)
    return config


def _kv_cache(text: Section) -> KvCachePrecision | None:
    """Of a bundle alone: an export writes the key."""
    precision = text.get(KV_CACHE_KEY)
    if precision is not None and precision not in KV_CACHE_DTYPES:
        text.problem(f"{KV_CACHE_KEY} is {precision!r}, expected one of {', '.join(KV_CACHE_DTYPES)}")
        return None
    return cast("KvCachePrecision | None", precision)


def _refuse_sliding_window(text: Section, config: DecoderConfig) -> None:
    """Sliding attention is not computed; a window that no layer uses, or that no context outgrows, changes nothing."""
    num_layers = config.num_hidden_layers
    stated = text.integer("sliding_window", 4096)
    window = stated if text.flag("use_sliding_window", False) else None
    first = text.integer("max_window_layers", 80, minimum=0)
    kinds = text.get("layer_types")
    if kinds is None:
        slides = window is not None and first < num_layers
    elif not isinstance(kinds, list) or not set(map(str, kinds)) <= {"full_attention", "sliding_attention"}:
        text.problem(f"layer_types must list full_attention for each layer, found {kinds!r}")
        return
    else:
        slides = "sliding_attention" in kinds
    if slides and (window is None or window < config.max_position_embeddings):
        text.problem(
            f"layers from {first} on, or those of layer_types, slide over a window of {window} tokens in a context of "
            f"{config.max_position_embeddings} (use_sliding_window): sliding attention is not computed"
        )
