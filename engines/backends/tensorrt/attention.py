"""Which bodies of a graph's attention a build tries, in order, and what it says of the one it took."""

from collections.abc import Sequence

from engines.backends.facts import LayerFacts
from engines.backends.tensorrt.description import ops_of
from export.checkpoint.config import ModelConfig
from export.contract import GraphName
from plugins.registry import CACHED_ATTENTION, PATCH_ATTENTION, AttentionBody, OpSignature

MOST_FLOAT32_TOKENS = 12_224
"""Largest cache for which the plain decode kernel keeps its scores in float32.

It holds one score a cached token, beside 256 bytes, in 48 KB of shared memory; a larger cache makes them bfloat16
(float16), and their sum too. Seen in the kernels of TensorRT-RTX 1.7 for SM80 to SM121; a test asks it again.
"""


def _op(graph: GraphName) -> OpSignature:
    return PATCH_ATTENTION if graph == "vision" else CACHED_ATTENTION


def attention_bodies(
    graph: GraphName, dtype: str, capacity: int, config: ModelConfig
) -> tuple[AttentionBody, ...]:
    """What to try, best first.

    Args:
        graph: vision, decoder or a stage of it.
        dtype: what it computes in.
        capacity: tokens of the KV cache.
        config: the model's sizes.
    """
    if dtype == "float32":
        return ("decomposable", "plain")
    if graph == "vision":
        return ("fused", "plain")
    fused: tuple[AttentionBody, ...] = ("fused",) if capacity <= MOST_FLOAT32_TOKENS else ()
    return (*fused, *_folded_bodies(config), "plain")


def _folded_bodies(config: ModelConfig) -> tuple[AttentionBody, ...]:
    """See `tensorrt_rtx_folded` of the op: none is worth it where a KV head has one query head."""
    decoder = config.decoder
    if decoder.num_attention_heads == decoder.num_key_value_heads:
        return ()
    return ("folded_decomposable",) if decoder.num_key_value_heads == 1 else ("folded",)


def attention_notes(
    graph: GraphName,
    dtype: str,
    capacity: int,
    body: AttentionBody,
    config: ModelConfig,
    layers: Sequence[LayerFacts],
) -> tuple[str, ...]:
    """What is unusual about how an engine computes its attention, as sentences for the user."""
    op = _op(graph).name
    if ops_of(layers).get(op) == "plugin":
        return ()
    notes = []
    if dtype == "float16" and body != "plain":
        notes.append(
            f"{op}: TensorRT adds the products of float16 in float16; those of a bfloat16 bundle in float32"
        )
    if body in _WHAT:
        is_long = graph != "vision" and capacity > MOST_FLOAT32_TOKENS and dtype != "float32"
        shape = _shape_text(graph, config)
        reason = (
            f"beyond {MOST_FLOAT32_TOKENS:,} tokens of context the plain decode kernel adds scores in {dtype}"
            if is_long
            else f"TensorRT has no fused kernel for {shape}"
        )
        notes.append(f"{op}: {_WHAT[body]}, since {reason}")
    return tuple(notes)


_FOLDED = "the query heads of a KV head are folded into rows, which takes more memory in prefill"
_WHAT: dict[AttentionBody, str] = {
    "folded": _FOLDED,
    "folded_decomposable": _FOLDED,
    "plain": "computed by plain products in float32, which takes more memory and time",
}


def _shape_text(graph: GraphName, config: ModelConfig) -> str:
    if graph == "vision":
        vision = config.vision
        return f"{vision.num_heads} heads of {vision.embed_dim // vision.num_heads}"
    decoder = config.decoder
    heads = f"{decoder.num_attention_heads} query heads over {decoder.num_key_value_heads}"
    return f"{heads} of {decoder.head_dim}"
