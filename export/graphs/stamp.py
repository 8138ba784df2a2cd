"""Copies a traced block into the whole graph, once for each layer, with its own weights."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import onnx_ir as ir

from export.quantization.patterns import product, rows
from export.weights.source import LinearValues


class WeightLookUp(Protocol):
    """Gives the graph's values for the parameters of a traced block, by their paths in it."""

    def value(self, path: str, shape: ir.Shape) -> ir.Value:
        """A parameter in the graph's dtype. Args: shape: what it is read in."""

    def linear(self, path: str) -> LinearValues | None:
        """The same as a quantized linear; None: it is a plain tensor."""


def stamp(
    graph: ir.Graph, piece: ir.Graph, prefix: str, inputs: Mapping[str, ir.Value], weights: WeightLookUp
) -> list[ir.Value]:
    """Append a copy of `piece` to `graph`.

    Args:
        graph: receives the nodes.
        piece: a traced block (see `trace_piece`).
        prefix: scope of the copies' names, e.g. `/layers.3`.
        inputs: values for the piece's inputs, by name.
        weights: gives the graph's values for the piece's parameters.

    Returns:
        The copies of the piece's outputs.
    """
    values: dict[ir.Value, ir.Value] = {value: inputs[_name(value)] for value in piece.inputs}
    quantized = {}
    for name, parameter in piece.initializers.items():
        if linear := weights.linear(name):
            quantized[parameter] = linear
        else:
            values[parameter] = weights.value(name, _shape(parameter))
    for node in piece:
        if node.op_type == "Transpose" and node.inputs[0] in quantized:
            quantized[node.outputs[0]] = quantized[node.inputs[0]]
            continue
        outputs = [_copy_value(value, prefix) for value in node.outputs]
        read = [quantized[item] for item in node.inputs if item in quantized]
        inputs_of_copy = [None if item is None else values.get(item) for item in node.inputs]
        if read:
            _append_product(graph, node, f"{prefix}/{node.name}", inputs_of_copy, read[0], outputs[0])
        else:
            graph.append(_copy_node(node, prefix, inputs_of_copy, outputs))
        values.update(zip(node.outputs, outputs, strict=True))
    return [values[output] for output in piece.outputs]


def _append_product(
    graph: ir.Graph,
    node: ir.Node,
    name: str,
    inputs: Sequence[ir.Value | None],
    linear: LinearValues,
    output: ir.Value,
) -> None:
    """What a traced `MatMul(x, Transpose(w))`, `Gemm(x, w, bias)` or `Gather(w, ids)` gives, by a quantized w."""
    scope = name.rpartition("/")[0]
    if node.op_type == "Gather" and inputs[1] is not None:
        rows(graph, scope, inputs[1], linear, output)
        return
    x, bias = inputs[0], inputs[2] if len(inputs) > 2 else None
    assert node.op_type in {"MatMul", "Gemm"}, f"{name} reads the quantized {linear.linear.name}"
    assert x is not None, f"{name} reads the quantized {linear.linear.name} as its input"
    product(graph, scope, x, linear, output, bias)


def _copy_value(value: ir.Value, prefix: str) -> ir.Value:
    return ir.Value(name=f"{prefix}/{value.name}", type=value.type, shape=value.shape)


def _copy_node(
    node: ir.Node, prefix: str, inputs: Sequence[ir.Value | None], outputs: Sequence[ir.Value]
) -> ir.Node:
    assert not any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())
    return ir.Node(
        node.domain,
        node.op_type,
        inputs,
        node.attributes.values(),
        outputs=outputs,
        name=f"{prefix}/{node.name}",
    )


def _shape(value: ir.Value) -> ir.Shape:
    assert value.shape is not None
    return value.shape


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name
