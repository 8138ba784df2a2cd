"""Takes away what tracing leaves around reshapes.

Tracing writes every dynamic view as Shape, Squeeze, Reshape, Concat, Reshape. The traced shapes say the same in one
constant, or in the shape of another tensor: fewer nodes to read, to build and to run.
"""

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

_COPY_DIM, _INFERRED_DIM = 0, -1


def simplify_reshapes(graph: ir.Graph) -> None:
    """Replace computed targets of `Reshape`, then drop the nodes nobody reads.

    requires: values carry the symbolic shapes of tracing.
    ensures: no weight is reshaped: the initializer has the wanted shape itself, over the same bytes. Of every other
    `Reshape`, the target is a constant wherever at most one of its dims is neither fixed nor copied from the same axis
    of the input; else `Shape` of an earlier value that has the very same symbolic shape; else unchanged.
    """
    weights = set(graph.initializers.values())
    earlier: list[ir.Value] = list(graph.inputs)
    for node in list(graph):
        if node.op_type == "Reshape" and node.inputs[0] in weights:
            _give_shape(node)
        elif node.op_type == "Reshape":
            _simplify(graph, node, earlier)
        earlier.extend(node.outputs)
    RemoveUnusedNodesPass()(ir.Model(graph, ir_version=10))


def _give_shape(node: ir.Node) -> None:
    weight, output = node.inputs[0], node.outputs[0]
    assert weight is not None
    assert output.shape is not None
    assert len(weight.uses()) == 1, f"{weight.name} is read in two shapes"
    weight.shape = output.shape
    output.replace_all_uses_with(weight)


def _simplify(graph: ir.Graph, node: ir.Node, earlier: list[ir.Value]) -> None:
    source, output = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or output.shape is None or len(output.shape) == 0:
        return
    target = _constant_target(source.shape, output.shape)
    if target is not None:
        new = ir.node("Constant", [], {"value_ints": target})
        node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
    else:
        twin = next((value for value in earlier if value.shape == output.shape), None)
        if twin is None:
            return
        new = ir.node("Shape", [twin])
    new.metadata_props.update(node.metadata_props)
    graph.insert_before(node, new)
    node.replace_input_with(1, new.outputs[0])


def _constant_target(source: ir.Shape, output: ir.Shape) -> list[int] | None:
    target = []
    for axis, dim in enumerate(output):
        if isinstance(dim, int):
            target.append(dim)
        elif axis < len(source) and source[axis] == dim:
            target.append(_COPY_DIM)
        else:
            target.append(_INFERRED_DIM)
    return target if target.count(_INFERRED_DIM) <= 1 else None
