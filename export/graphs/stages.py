"""Cuts the decoder's graph into stages at the borders of its layers, one graph each.

A cut moves nothing and computes nothing anew: stages one after another give the whole graph's bits. Every weight stays
by reference; what several stages read (rotary tables, a tied embedding) stands in each of them.
"""

import onnx_ir as ir

from export.contract import DecoderStage, GraphContract


def stage_model(model: ir.Model, stage: DecoderStage, contract: GraphContract) -> ir.Model:
    """One stage of a decoder's graph; the whole is left as it is.

    Args:
        model: the whole decoder, whose layers are named `/layers.N`.
        stage: which layers.
        contract: `stage_contract` of it.
    """
    renamed = {_layer_input(model.graph, layer): name for layer, name in _borders(stage)}
    original = {name: value for value, name in renamed.items()}
    graph = ir.convenience.extract(
        model.graph,
        [original.get(spec.name, spec.name) for spec in contract.inputs],
        [original.get(spec.name, spec.name) for spec in contract.outputs],
    )
    for value, spec in (
        *zip(graph.inputs, contract.inputs, strict=True),
        *zip(graph.outputs, contract.outputs, strict=True),
    ):
        value.name, value.doc_string, value.shape = spec.name, spec.doc, ir.Shape(spec.shape)
    graph.name = stage.graph
    return ir.Model(
        graph,
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        doc_string=f"{model.doc_string}: layers {stage.layers.start} to {stage.layers.stop - 1}",
        functions=list(model.functions.values()),
    )


def _borders(stage: DecoderStage) -> list[tuple[int, str]]:
    return [
        *([] if stage.is_first else [(stage.layers.start, stage.border)]),
        *([] if stage.is_last else [(stage.layers.stop, stage.next_border)]),
    ]


def _layer_input(graph: ir.Graph, layer: int) -> str:
    """Name of the hidden state that goes into a layer: what its first computed node reads and the layer before gave."""
    before = f"/layers.{layer - 1}/"
    for node in graph:
        if node.name and node.name.startswith(f"/layers.{layer}/"):
            for value in node.inputs:
                if value is not None and value.name and value.name.startswith(before):
                    return value.name
    raise AssertionError(f"no hidden state between the layers {layer - 1} and {layer}")
