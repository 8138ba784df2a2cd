"""Faults that exporters and runtimes have shipped, made on purpose: the gates must notice each.

A mutation edits a bundle's graph or what the sessions are fed, nothing else, so it goes through the same code as a
sound engine. Each says which gate must fail and where the search must find it, and a
test holds it to that. Repository#number: where the fault was seen.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from export.checkpoint.config import DecoderConfig, ModelConfig
from export.contract import GraphName
from export.inputs import DecoderInputs, VisionInputs
from plugins.registry import QUANTIZED_CACHE_ATTENTION

Edit = Callable[[onnx.GraphProto], None]


@dataclass(frozen=True)
class Mutation:
    """One fault."""

    name: str
    meaning: str
    gate: str
    """Name of a gate or property that must fail."""
    node: str
    """Where the search must point: the name of a node in the canonical graph."""
    graph: GraphName | None = None
    edit: Edit | None = None
    """Changes that graph."""
    rank: int | None = None
    """Whose graph, of a decoder that is divided among ranks; None: each one's."""
    vision_feeds: Callable[[VisionInputs], VisionInputs] | None = None
    decoder_feeds: Callable[[DecoderInputs, ModelConfig], DecoderInputs] | None = None


# --- edits of a graph -----------------------------------------------------------------------------


class NoSuchNodeError(LookupError):
    """What a mutation edits is not in this graph; it may be in another stage of the decoder."""


def _node(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto | None = next((node for node in graph.node if node.name == name), None)
    if found is None:
        raise NoSuchNodeError(name)
    return found


def _edit_table(name: str, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Edit:
    """Change a constant that is stored in the graph itself."""

    def edit(graph: onnx.GraphProto) -> None:
        table = next(initializer for initializer in graph.initializer if initializer.name == name)
        table.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(table)), name))

    return edit


def _use_instead(node: str, index: int, value: str) -> Edit:
    """Feed a node another value, such as another layer's weight."""

    def edit(graph: onnx.GraphProto) -> None:
        _node(graph, node).input[index] = value

    return edit


def _set_attribute(node_suffix: str, name: str, value: Any) -> Edit:
    """On every node whose name ends so."""

    def edit(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            if node.name.endswith(node_suffix):
                others = [attribute for attribute in node.attribute if attribute.name != name]
                del node.attribute[:]
                node.attribute.extend([*others, helper.make_attribute(name, value)])

    return edit


def _bypass(node: str) -> Edit:
    """Make a two-input sum give its first input alone: a dropped bias or residual."""

    def edit(graph: onnx.GraphProto) -> None:
        target = _node(graph, node)
        target.op_type = "Identity"
        del target.input[1:]

    return edit


def _drop_gemm_bias(node: str) -> Edit:
    def edit(graph: onnx.GraphProto) -> None:
        del _node(graph, node).input[2:]

    return edit


def _round_to_float16(node: str) -> Edit:
    """A node's first input loses all but the 11 significant bits of float16.

    By Veltkamp's split, c - (c - x) with c = (2^13 + 1) x: the CPU engine computes in float32 and would widen a cast.
    """

    def edit(graph: onnx.GraphProto) -> None:
        nodes, target = list(graph.node), _node(graph, node)
        position = nodes.index(target)
        x, factor = nodes[position].input[0], f"{node}/factor"
        graph.initializer.append(numpy_helper.from_array(np.array(8193, np.float32), factor))
        steps = (
            ("Mul", (x, factor), "wide"),
            ("Sub", ("wide", x), "low"),
            ("Sub", ("wide", "low"), "rounded"),
        )
        local = {"wide": f"{node}/wide", "low": f"{node}/low", "rounded": f"{node}/rounded"}
        split = [
            helper.make_node(
                op, [local.get(name, name) for name in inputs], [local[output]], name=local[output]
            )
            for op, inputs, output in steps
        ]
        nodes[position].input[0] = local["rounded"]
        nodes[position:position] = split
        copies = [onnx.NodeProto.FromString(item.SerializeToString()) for item in nodes]
        del graph.node[:]
        graph.node.extend(copies)

    return edit


def _overflow(node: str, index: int) -> Edit:
    """One constant becomes infinite, as a value beyond 65504 does in float16."""

    def edit(graph: onnx.GraphProto) -> None:
        name = f"{node}/infinite"
        graph.initializer.append(numpy_helper.from_array(np.array(np.inf, np.float32), name))
        _node(graph, node).input[index] = name

    return edit


# --- wrong feeds ----------------------------------------------------------------------------------


def _drop_boundary(inputs: VisionInputs) -> VisionInputs:
    offsets = inputs.cu_seqlens
    merged = np.delete(offsets, 1) if len(offsets) > 2 else offsets
    return VisionInputs.of(inputs.patches, inputs.positions, merged)


def _transpose_positions(inputs: VisionInputs) -> VisionInputs:
    return replace(inputs, positions=np.ascontiguousarray(inputs.positions[::-1]))


def _restart_positions(inputs: VisionInputs) -> VisionInputs:
    """Row and column by plain raster order instead of merge order, one picture at a time."""
    raster = inputs.positions.copy()
    for start, stop in itertools.pairwise(inputs.cu_seqlens):
        piece = inputs.positions[:, start:stop]
        raster[:, start:stop] = piece[:, np.lexsort((piece[1], piece[0]))]
    return replace(inputs, positions=raster)


def _is_decode(inputs: DecoderInputs) -> bool:
    return inputs.token_ids.shape[1] == 1 and bool(inputs.write_index.any())


def _zero_delta(inputs: DecoderInputs, _config: ModelConfig) -> DecoderInputs:
    if not _is_decode(inputs):
        return inputs
    positions = np.broadcast_to(inputs.write_index.astype(np.int32)[None, :, None], inputs.position_ids.shape)
    return replace(inputs, position_ids=np.ascontiguousarray(positions))


def _stale_entry(inputs: DecoderInputs, _config: ModelConfig) -> DecoderInputs:
    """Each token is written one place late, so that decoding attends to an entry that nobody wrote."""
    if not _is_decode(inputs):
        return inputs
    return replace(inputs, write_index=inputs.write_index + 1, kv_lengths=inputs.kv_lengths + 1)


def _text_positions(inputs: DecoderInputs, _config: ModelConfig) -> DecoderInputs:
    """Pictures get the positions of text: the temporal id on all three axes, counting on."""
    if _is_decode(inputs):
        return inputs
    index = inputs.write_index[:, None] + np.arange(inputs.token_ids.shape[1])
    return replace(inputs, position_ids=np.tile(index.astype(np.int32), (3, 1, 1)))


def _shift_tokens(inputs: DecoderInputs, _config: ModelConfig) -> DecoderInputs:
    return replace(inputs, token_ids=np.roll(inputs.token_ids, 1, axis=1))


def _reverse_embeds(inputs: DecoderInputs, _config: ModelConfig) -> DecoderInputs:
    return replace(inputs, visual_embeds=np.ascontiguousarray(inputs.visual_embeds[::-1]))


# --- the suite ------------------------------------------------------------------------------------


def _swap(first: int, second: int) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
    """Exchange two axes in an `axis_of` table."""
    return lambda axis_of: np.select([axis_of == first, axis_of == second], [second, first], axis_of).astype(
        np.int32
    )


def mutations(config: ModelConfig) -> list[Mutation]:
    """The suite for a model's sizes; `last` block and layer, so that a fault may hide deep."""
    block = config.vision.depth - 1
    layer = config.decoder.num_hidden_layers - 1
    layer_rotary, block_rotary = "/layers.0/self_attn/QvRotary", "/blocks.0/attn/QvRotary"
    worst = "worst_token_error"
    return [
        Mutation(
            "mrope_sections_swapped",
            "height and width exchanged in M-RoPE (TensorRT-Model-Connect#751)",
            f"prefill_logits.{worst}",
            layer_rotary,
            "decoder",
            _edit_table("model.rotary.axis_of", _swap(1, 2)),
        ),
        Mutation(
            "rope_theta_of_another_model",
            "rotary frequencies of theta 10,000 instead of the checkpoint's",
            f"prefill_logits.{worst}",
            layer_rotary,
            "decoder",
            _edit_table(
                "model.rotary.frequencies", lambda f: (f ** (np.log(1e4) / np.log(1e6))).astype(np.float32)
            ),
        ),
        Mutation(
            "patch_axes_swapped",
            "rows and columns exchanged in the vision graph's table",
            f"visual_embeds.{worst}",
            block_rotary,
            "vision",
            _edit_table("visual.rotary.axis_of", _swap(0, 1)),
        ),
        Mutation(
            "wrong_epsilon",
            "RMSNorm with the configuration class's default 1e-5 instead of the checkpoint's 1e-6",
            f"prefill_logits.{worst}",
            "/layers.0/input_layernorm/RMSNormalization",
            "decoder",
            _set_attribute("/RMSNormalization", "epsilon", 1e-5),
        ),
        Mutation(
            "float16_product",
            "one matrix product takes its input in float16 (TensorRT-LLM#3223)",
            f"prefill_logits.{worst}",
            f"/layers.{layer}/mlp/down_proj/MatMul",
            "decoder",
            _round_to_float16(f"/layers.{layer}/mlp/down_proj/MatMul"),
        ),
        Mutation(
            "weight_of_another_layer",
            "the last layer takes the first layer's values",
            f"prefill_logits.{worst}",
            f"/layers.{layer}/self_attn/v_proj/Add",
            "decoder",
            _use_instead(
                f"/layers.{layer}/self_attn/v_proj/Transpose", 0, "model.layers.0.self_attn.v_proj.weight"
            ),
        ),
        Mutation(
            "decoder_bias_dropped",
            "no bias on the keys' projection",
            f"prefill_logits.{worst}",
            "/layers.0/self_attn/k_proj/Add",
            "decoder",
            _bypass("/layers.0/self_attn/k_proj/Add"),
        ),
        Mutation(
            "vision_bias_dropped",
            "no bias on a block's fused projection",
            f"visual_embeds.{worst}",
            f"/blocks.{block}/attn/qkv/Gemm",
            "vision",
            _drop_gemm_bias(f"/blocks.{block}/attn/qkv/Gemm"),
        ),
        Mutation(
            "residual_dropped",
            "a block's attention without its residual",
            f"visual_embeds.{worst}",
            f"/blocks.{block}/Add",
            "vision",
            _bypass(f"/blocks.{block}/Add"),
        ),
        Mutation(
            "approximate_gelu",
            "the merger's exact GELU by its tanh approximation",
            f"visual_embeds.{worst}",
            "/merger/mlp/1/Gelu",
            "vision",
            _set_attribute("/merger/mlp/1/Gelu", "approximate", "tanh"),
        ),
        Mutation(
            "overflow",
            "an infinite activation, as float16 makes one (transformers#33294)",
            "prefill_logits.finite",
            f"/layers.{layer}/mlp/Mul_1",
            "decoder",
            _overflow(f"/layers.{layer}/mlp/Mul_1", 0),
        ),
        Mutation(
            "segment_boundary_dropped",
            "two pictures see each other (TensorRT-LLM#2183)",
            "packing",
            "/blocks.0/attn/QvPatchAttention",
            vision_feeds=_drop_boundary,
        ),
        Mutation(
            "positions_transposed",
            "rows and columns of patches exchanged",
            f"visual_embeds.{worst}",
            block_rotary,
            vision_feeds=_transpose_positions,
        ),
        Mutation(
            "positions_in_raster_order",
            "positions of patches row by row, although patches stand in 2 x 2 blocks",
            f"visual_embeds.{worst}",
            block_rotary,
            vision_feeds=_restart_positions,
        ),
        Mutation(
            "decode_delta_zero",
            "decode positions without the delta that pictures leave (TensorRT-LLM#15661)",
            f"decode_logits.{worst}",
            layer_rotary,
            decoder_feeds=_zero_delta,
        ),
        Mutation(
            "text_positions_for_pictures",
            "one position axis instead of three (pytorch/TensorRT's arange)",
            f"prefill_logits.{worst}",
            layer_rotary,
            decoder_feeds=_text_positions,
        ),
        Mutation(
            "stale_cache_entry",
            "decoding attends to an entry that nobody wrote",
            f"decode_logits.{worst}",
            "/layers.0/self_attn/QvQuantizedCacheAttention"
            if config.decoder.kv_cache
            else "/layers.0/self_attn/QvCachedAttention",
            decoder_feeds=_stale_entry,
        ),
        Mutation(
            "tokens_shifted",
            "every token one place late",
            f"prefill_logits.{worst}",
            "/embed/model/embed_tokens/Gather",
            decoder_feeds=_shift_tokens,
        ),
        Mutation(
            "visual_embeds_reversed",
            "visual tokens in another order than their pads",
            f"prefill_logits.{worst}",
            "/embed/Where_1",
            decoder_feeds=_reverse_embeds,
        ),
        *(_cache_mutations() if config.decoder.kv_cache else ()),
        *(_yarn_mutations(config.decoder) if config.decoder.yarn else ()),
    ]


def _cache_mutations() -> tuple[Mutation, ...]:
    """Of a cache in 8 bits: its scales are as easily mixed up as any other tensor."""
    node = "/layers.0/self_attn/QvQuantizedCacheAttention"
    return (
        Mutation(
            "cache_scales_exchanged",
            "cached keys of the first layer under the scales of its values",
            "decode_logits.worst_token_error",
            node,
            "decoder",
            _use_instead(
                node, QUANTIZED_CACHE_ATTENTION.inputs.index("past_key_scale"), "past_value_scale.0"
            ),
        ),
    )


def _yarn_mutations(config: DecoderConfig) -> tuple[Mutation, ...]:
    """Of a model whose context is stretched: half of YaRN is as easily lost as the whole."""
    gate, found = "prefill_logits.worst_token_error", "/layers.0/self_attn/QvRotary"
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    plain = (1 / config.rope_theta**exponents).astype(np.float32)
    return (
        Mutation(
            "yarn_frequencies_ignored",
            "rotary frequencies as trained, although the configuration stretches them",
            gate,
            found,
            "decoder",
            _edit_table("model.rotary.frequencies", lambda _: plain),
        ),
        Mutation(
            "yarn_temperature_ignored",
            "queries without YaRN's attention factor in the first layer",
            gate,
            found,
            "decoder",
            _bypass("/layers.0/self_attn/Mul"),
        ),
    )
