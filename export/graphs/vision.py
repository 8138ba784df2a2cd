"""The vision encoder's graph, put together from its traced pieces."""

import onnx_ir as ir

from export.contract import vision_contract
from export.graphs.assemble import (
    graph_with_inputs,
    model_of,
    piece_inputs,
    set_outputs,
    table_inputs,
    table_values,
)
from export.graphs.stamp import stamp
from export.graphs.trace import trace_piece
from export.graphs.weights import Weights
from export.models.pieces import PieceInput, torch_dtype
from export.models.qwen2_vl.vision import PatchEmbed, PatchMerger, VisionBlock, rotary_tables
from export.weights.source import WeightSource
from plugins.patch_attention import onnx_functions as patch_attention
from plugins.rotary import onnx_functions as rotary

_GEOMETRY = ("positions", "cu_seqlens", "segment_range")


def vision_graph(source: WeightSource, dtype: str) -> ir.Model:
    """Canonical ONNX of the vision encoder: `vision_contract`'s inputs and outputs, initializers by reference.

    Args:
        source: gives configuration and weights.
        dtype: what the graph computes in: "float32", "float16" or "bfloat16".
    """
    config, compute_dtype = source.config.vision, torch_dtype(dtype)
    contract = vision_contract(source.config, dtype)
    tables = rotary_tables(config)
    hidden = PieceInput("x", compute_dtype, ("P", config.embed_dim))
    block_inputs = [hidden, *piece_inputs(contract, _GEOMETRY), *table_inputs(tables)]
    embed = trace_piece(lambda: PatchEmbed(config), piece_inputs(contract, ["patches"]), ["x"], compute_dtype)
    block = trace_piece(lambda: VisionBlock(config), block_inputs, ["x"], compute_dtype)
    merger = trace_piece(lambda: PatchMerger(config), [hidden], ["visual_embeds"], compute_dtype)

    graph, values = graph_with_inputs("vision", contract)
    weights = Weights(graph, source, dtype)
    values |= table_values(weights, "visual.rotary", tables)
    (values["x"],) = stamp(graph, embed, "/patch_embed", values, weights.under("visual.patch_embed"))
    for i in range(config.depth):
        (values["x"],) = stamp(graph, block, f"/blocks.{i}", values, weights.under(f"visual.blocks.{i}"))
    outputs = stamp(graph, merger, "/merger", values, weights.under("visual.merger"))
    set_outputs(graph, contract, outputs)
    return model_of(
        graph,
        [rotary.portable(), patch_attention.portable()],
        "Qwen2-VL vision encoder, exported by qv-export",
    )
