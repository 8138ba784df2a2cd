"""Copies a traced block into the whole graph, once for each layer, with its own weights."""

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir


def stamp(
    graph: ir.Graph,
    piece: ir.Graph,
    prefix: str,
    inputs: Mapping[str, ir.Value],
    weight_of: Callable[[str, ir.Shape], ir.Value],
) -> list[ir.Value]:
    """Append a copy of `piece` to `graph`.

    Args:
        graph: receives the nodes.
        piece: a traced block (see `trace_piece`).
        prefix: scope of the copies' names, e.g. `/layers.3`.
        inputs: values for the piece's inputs, by name.
        weight_of: gives the graph's value for a parameter, by its path in the piece and the shape it is read in.

    Returns:
        The copies of the piece's outputs.
    """
    values: dict[ir.Value, ir.Value] = {value: inputs[_name(value)] for value in piece.inputs}
    values |= {value: weight_of(name, _shape(value)) for name, value in piece.initializers.items()}
    for node in piece:
        copy = _copy_node(node, prefix, [values[item] if item is not None else None for item in node.inputs])
        graph.append(copy)
        values.update(zip(node.outputs, copy.outputs, strict=True))
    return [values[output] for output in piece.outputs]


def _copy_node(node: ir.Node, prefix: str, inputs: Sequence[ir.Value | None]) -> ir.Node:
    outputs = [
        ir.Value(name=f"{prefix}/{value.name}", type=value.type, shape=value.shape) for value in node.outputs
    ]
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
