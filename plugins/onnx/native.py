"""The functions that make a canonical graph one that TensorRT-RTX compiles to its native layers."""

from collections.abc import Iterable

import onnx

from plugins.cached_attention import onnx_functions as cached_attention
from plugins.cached_attention.plugin_body import tensorrt_plugins
from plugins.collective import onnx_functions as collective
from plugins.onnx import native_layers
from plugins.patch_attention import onnx_functions as patch_attention
from plugins.registry import (
    CACHED_ATTENTION,
    COLLECTIVES,
    OP_DOMAIN,
    PATCH_ATTENTION,
    ROTARY,
    AttentionBody,
)
from plugins.rotary import onnx_functions as rotary


def choose_native_bodies(model: onnx.ModelProto, attention: AttentionBody = "fused") -> None:
    """Replace the bodies of our ops in place; nodes, weights, inputs and outputs stay.

    The model still passes the checker, and ONNX Runtime computes the same with it, slowly.

    Args:
        model: a canonical graph, vision or decoder.
        attention: the body of the graph's attention.

    Raises:
        ValueError: the graph has both attentions: its native ones would need two functions of one name; or a body
            that is for the decoder only.
    """
    kept = [function for function in model.functions if function.domain != OP_DOMAIN]
    names = {function.name for function in model.functions if function.domain == OP_DOMAIN}
    chosen = [*_functions(names, attention), *_collectives(model)]
    del model.functions[:]
    model.functions.extend([*kept, *chosen])


def _collectives(model: onnx.ModelProto) -> Iterable[onnx.FunctionProto]:
    """Of a rank's graph, whose calls all say of how many ranks."""
    names = {op.name for op in COLLECTIVES}
    called = [node for node in model.graph.node if node.domain == OP_DOMAIN and node.op_type in names]
    if not called:
        return
    (num_ranks,) = {attribute.i for node in called for attribute in node.attribute}
    there = {function.name for function in model.functions}
    yield from (body for body in collective.tensorrt_rtx(num_ranks) if body.name in there)
    yield native_layers.dist_collective()


def _functions(names: set[str], attention: AttentionBody) -> Iterable[onnx.FunctionProto]:
    attentions = {PATCH_ATTENTION.name, CACHED_ATTENTION.name}
    if attentions <= names:
        raise ValueError(f"expected a vision or a decoder graph, found {sorted(attentions)} in one")
    if ROTARY.name in names:
        yield rotary.tensorrt_rtx()
    is_decomposable = attention.endswith("decomposable")
    if PATCH_ATTENTION.name in names:
        yield from _patch_functions(attention, is_decomposable=is_decomposable)
    if CACHED_ATTENTION.name in names:
        yield from _cached_functions(attention, is_decomposable=is_decomposable)


def _patch_functions(attention: AttentionBody, *, is_decomposable: bool) -> Iterable[onnx.FunctionProto]:
    if attention == "plain":
        yield patch_attention.tensorrt_rtx_plain()
    elif attention.startswith("folded") or attention == "plugin":
        raise ValueError(f"expected a decoder graph for the body {attention!r}, found a vision graph")
    else:
        yield patch_attention.tensorrt_rtx(is_decomposable=is_decomposable)
        yield native_layers.native_attention("lengths")


def _cached_functions(attention: AttentionBody, *, is_decomposable: bool) -> Iterable[onnx.FunctionProto]:
    yield native_layers.kv_cache_update()
    if attention == "plugin":
        yield tensorrt_plugins()
    elif attention == "plain":
        yield cached_attention.tensorrt_rtx_plain()
    elif attention.startswith("folded"):
        yield cached_attention.tensorrt_rtx_folded(is_decomposable=is_decomposable)
        yield native_layers.native_attention("mask")
    else:
        yield cached_attention.tensorrt_rtx(is_decomposable=is_decomposable)
        yield native_layers.native_attention("causal")
