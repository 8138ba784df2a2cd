"""Puts a graph together by its family's recipe: pieces traced once, copied to their places, joined by names."""

from collections.abc import Sequence

import onnx_ir as ir

from export.checkpoint.config import DecoderConfig
from export.contract import GraphContract, GraphName, TensorSpec
from export.graphs.stamp import stamp
from export.graphs.trace import trace_piece
from export.graphs.weights import Weights
from export.models.families import family_of
from export.models.pieces import GraphRecipe, torch_dtype
from export.weights.source import WeightSource
from export.weights.stored import ir_dtype
from plugins.cached_attention import onnx_functions as cached_attention
from plugins.collective import onnx_functions as collective
from plugins.patch_attention import onnx_functions as patch_attention
from plugins.quantized_cache_attention import onnx_functions as quantized_cache_attention
from plugins.registry import OP_DOMAIN, OPSET_VERSION
from plugins.rotary import onnx_functions as rotary

IR_VERSION = 11
"""The newest that onnx.checker and ONNX Runtime 1.2x both take and that knows opset 24's types."""


def build_graph(name: GraphName, source: WeightSource, dtype: str) -> ir.Model:
    """Canonical ONNX that any consumer can run: the contract's inputs and outputs, initializers by reference.

    Args:
        name: which of the two.
        source: gives configuration and weights.
        dtype: what the graph computes in, and of the cache: "float32", "float16" or "bfloat16".
    """
    return build_graphs(name, [source], dtype)[0]


def build_graphs(name: GraphName, sources: Sequence[WeightSource], dtype: str) -> list[ir.Model]:
    """As `build_graph`, one for each source; configurations of the same sizes, so that a piece is traced once for all.

    Args:
        name: which of the two.
        sources: the ranks of a tensor-parallel group, in order.
        dtype: see `build_graph`.
    """
    family = family_of(sources[0].config.model_type)
    recipes = [family.pieces(name, source.config, dtype) for source in sources]
    traced = [trace_piece(piece, torch_dtype(dtype)) for piece in recipes[0].pieces]
    return [
        _stamped(name, source, recipe, traced, dtype) for source, recipe in zip(sources, recipes, strict=True)
    ]


def _stamped(
    name: GraphName, source: WeightSource, recipe: GraphRecipe, traced: Sequence[ir.Graph], dtype: str
) -> ir.Model:
    graph, values = _graph_with_inputs(name, recipe.contract)
    weights = Weights(graph, source, dtype)
    values |= {
        table: weights.constant(f"{recipe.tables_scope}.{table}", values_of.numpy())
        for table, values_of in recipe.tables.items()
    }
    for piece, template in zip(recipe.pieces, traced, strict=True):
        for copy in piece.copies:
            inputs = {item.name: values[copy.names.get(item.name, item.name)] for item in piece.inputs}
            under = weights.under(copy.module) if copy.module else weights
            outputs = stamp(graph, template, f"/{copy.scope}", inputs, under)
            names = [copy.names.get(output, output) for output in piece.outputs]
            values.update(zip(names, outputs, strict=True))
    _set_outputs(graph, recipe.contract, values)
    return _model_of(graph, recipe, source.config.decoder)


def _graph_with_inputs(name: str, contract: GraphContract) -> tuple[ir.Graph, dict[str, ir.Value]]:
    inputs = {spec.name: _value(spec) for spec in contract.inputs}
    graph = ir.Graph(
        inputs=list(inputs.values()),
        outputs=[],
        nodes=[],
        opset_imports={"": OPSET_VERSION, OP_DOMAIN: 1},
        name=name,
    )
    return graph, inputs


def _value(spec: TensorSpec) -> ir.Value:
    return ir.Value(
        name=spec.name,
        type=ir.TensorType(ir_dtype(spec.dtype)),
        shape=ir.Shape(spec.shape),
        doc_string=spec.doc,
    )


def _set_outputs(graph: ir.Graph, contract: GraphContract, values: dict[str, ir.Value]) -> None:
    for spec in contract.outputs:
        value = values[spec.name]
        assert value.dtype == ir_dtype(spec.dtype), (spec.name, value.dtype)
        value.name, value.doc_string, value.shape = spec.name, spec.doc, ir.Shape(spec.shape)
        graph.outputs.append(value)


def _model_of(graph: ir.Graph, recipe: GraphRecipe, decoder: DecoderConfig) -> ir.Model:
    """With the portable body of each of our ops that the graph calls."""
    called = {node.op_type for node in graph if node.domain == OP_DOMAIN}
    bodies = [
        rotary.portable(),
        patch_attention.portable(),
        cached_attention.portable(),
        *collective.portable(),
    ]
    if decoder.kv_cache is not None:
        bodies.append(quantized_cache_attention.portable(decoder.kv_cache))
    return ir.Model(
        graph,
        ir_version=IR_VERSION,
        producer_name="qv-export",
        doc_string=recipe.doc,
        functions=[ir.serde.deserialize_function(body) for body in bodies if body.name in called],
    )
