"""Our ops, and what each takes and gives.

The signatures here are what the PyTorch reference, the ONNX function bodies and the TensorRT plugins of an op share.
This module is free of torch, so that engines can read it inside a server.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

OP_DOMAIN = "qv"
"""ONNX domain of our ops and namespace of their TensorRT plugins."""

OPSET_VERSION = 24
"""Standard opset of the canonical graphs: the first one with `TensorScatter` and `Swish`."""

PLUGIN_ATTRIBUTES: Mapping[str, str | int] = {"plugin_namespace": OP_DOMAIN, "plugin_version": "1", "aot": 1}
"""Node attributes by which TensorRT's parser prefers a registered plugin to the function body.

The parser looks for a plugin only on nodes with `plugin_namespace`; `aot` asks for an ahead-of-time one
(onnx-tensorrt, ModelImporter). Every other consumer runs the function and ignores them.
"""


@dataclass(frozen=True)
class OpSignature:
    """Name, inputs and outputs of an op, in order; the same words in PyTorch, ONNX and TensorRT."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, str | int]
    """What each node of the op carries."""


ROTARY = OpSignature(
    "QvRotary",
    inputs=("q", "k", "positions", "frequencies", "axis_of"),
    outputs=("rotated_q", "rotated_k"),
    attributes=PLUGIN_ATTRIBUTES,
)
PATCH_ATTENTION = OpSignature(
    "QvPatchAttention",
    inputs=("q", "k", "v", "cu_seqlens", "segment_range"),
    outputs=("attended",),
    attributes=PLUGIN_ATTRIBUTES,
)
CACHED_ATTENTION = OpSignature(
    # No plugin of its own: the cache must be a network's input and output, which only TensorRT's native layer allows.
    # Its attention may be the two plugins below (`plugins.cached_attention.split_nodes`).
    "QvCachedAttention",
    inputs=("q", "k", "v", "past_key", "past_value", "write_index", "kv_lengths"),
    outputs=("attended", "present_key", "present_value"),
    attributes={},
)
QUANTIZED_CACHE_ATTENTION = OpSignature(
    # No plugin, and no body for TensorRT: its native layer updates no cache in 8 bits.
    "QvQuantizedCacheAttention",
    inputs=(
        *("q", "k", "v", "past_key", "past_value", "past_key_scale", "past_value_scale"),
        *("write_index", "kv_lengths"),
    ),
    outputs=("attended", "present_key", "present_value", "present_key_scale", "present_value_scale"),
    attributes={},
)
AttentionBody = Literal["fused", "decomposable", "folded", "folded_decomposable", "plain", "plugin"]
"""How an attention is put to TensorRT: as its native layer, which must have a fused kernel or, "decomposable", may be
taken apart; the same with the query heads of a KV head folded into rows, for the cached one only; in plain ops; for
the cached one only, as plugins, which `plugins.onnx.inline` must then bring into the main graph."""

SIGNATURES = (ROTARY, PATCH_ATTENTION, CACHED_ATTENTION, QUANTIZED_CACHE_ATTENTION)
"""What the canonical graphs call."""

ALL_REDUCE = OpSignature("QvAllReduce", inputs=("x",), outputs=("reduced",), attributes={"num_ranks": 1})
ALL_GATHER = OpSignature("QvAllGather", inputs=("x",), outputs=("gathered",), attributes={"num_ranks": 1})
COLLECTIVES = (ALL_REDUCE, ALL_GATHER)
"""What the graphs of a tensor-parallel group's ranks call beside these. No plugin: a runtime has them or has not."""

CACHED_ATTENTION_PARTIALS = OpSignature(
    "QvCachedAttentionPartials",
    inputs=("q", "key", "value", "write_index", "kv_lengths"),
    outputs=("partials", "log_sums"),
    attributes=PLUGIN_ATTRIBUTES,
)
CACHED_ATTENTION_COMBINE = OpSignature(
    "QvCachedAttentionCombine",
    inputs=("q", "partials", "log_sums", "kv_lengths"),
    outputs=("attended",),
    attributes=PLUGIN_ATTRIBUTES,
)
PLUGIN_SIGNATURES = (CACHED_ATTENTION_PARTIALS, CACHED_ATTENTION_COMBINE)
"""What stands in for a call of `QvCachedAttention` in TensorRT networks, where a build asks for it."""


def plugins_of(op: str) -> tuple[str, ...]:
    """The plugins that compute an op of the canonical graphs, as `namespace::Name/version`; none for a foreign name."""
    signatures = PLUGIN_SIGNATURES if op == CACHED_ATTENTION.name else SIGNATURES
    return tuple(
        f"{signature.attributes['plugin_namespace']}::{signature.name}/{signature.attributes['plugin_version']}"
        for signature in signatures
        if signature.attributes and (signature.name == op or signatures is PLUGIN_SIGNATURES)
    )


def known_plugins() -> frozenset[str]:
    """Every plugin that this qv-export makes, as `namespace::Name/version`."""
    return frozenset(plugin for signature in SIGNATURES for plugin in plugins_of(signature.name))
