"""The decoder's graph, put together from its traced pieces."""

from dataclasses import replace

import onnx_ir as ir

from export.checkpoint.config import ModelConfig
from export.contract import CACHE_PARTS, cache_name, decoder_contract
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
from export.models.qwen2_vl.decoder import DecoderLayer, rotary_tables
from export.models.qwen2_vl.model import Qwen2VL
from export.weights.source import WeightSource
from plugins.cached_attention import onnx_functions as cached_attention
from plugins.rotary import onnx_functions as rotary


def _without_layers(config: ModelConfig) -> Qwen2VL:
    # Untied, so that the head keeps a parameter of its own; `Weights` knows where its bytes are.
    decoder = replace(config.decoder, num_hidden_layers=0, tie_word_embeddings=False)
    return Qwen2VL(replace(config, vision=replace(config.vision, depth=0), decoder=decoder))


def decoder_graph(source: WeightSource, dtype: str) -> ir.Model:
    """Canonical ONNX of the decoder: `decoder_contract`'s inputs and outputs, initializers by reference.

    Args:
        source: gives configuration and weights.
        dtype: what the graph computes in, and of the cache: "float32", "float16" or "bfloat16".
    """
    model, config, compute_dtype = source.config, source.config.decoder, torch_dtype(dtype)
    contract = decoder_contract(model, dtype)
    tables = rotary_tables(config)
    hidden = PieceInput("x", compute_dtype, ("B", "S", config.hidden_size))
    past = [
        PieceInput(f"past_{part}", compute_dtype, contract.input("past_key.0").shape) for part in CACHE_PARTS
    ]
    layer_inputs = [
        hidden,
        *piece_inputs(contract, ("position_ids", "write_index", "kv_lengths")),
        *past,
        *table_inputs(tables),
    ]
    embed = trace_piece(
        lambda: _without_layers(model),
        piece_inputs(contract, ("token_ids", "visual_embeds")),
        ["x"],
        compute_dtype,
        method="embed",
    )
    layer = trace_piece(
        lambda: DecoderLayer(config), layer_inputs, ["x", "present_key", "present_value"], compute_dtype
    )
    project = trace_piece(
        lambda: _without_layers(model),
        [hidden, *piece_inputs(contract, ["logits_index"])],
        ["logits"],
        compute_dtype,
        method="project",
    )

    graph, values = graph_with_inputs("decoder", contract)
    weights = Weights(graph, source, dtype)
    values |= table_values(weights, "model.rotary", tables)
    (values["x"],) = stamp(graph, embed, "/embed", values, weights)
    present: list[ir.Value] = []
    for i in range(config.num_hidden_layers):
        values |= {f"past_{part}": values[cache_name("past", part, i)] for part in CACHE_PARTS}
        values["x"], *cache = stamp(graph, layer, f"/layers.{i}", values, weights.under(f"model.layers.{i}"))
        present += cache
    logits = stamp(graph, project, "/project", values, weights)
    set_outputs(graph, contract, [*logits, *present])
    return model_of(
        graph, [rotary.portable(), cached_attention.portable()], "Qwen2-VL decoder, exported by qv-export"
    )
