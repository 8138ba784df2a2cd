"""Puts the body of a function in the place of each of its calls, under names that only that call has.

TensorRT's parser expands a function once a call and names what it finds there after the body alone, so a block that
stands 28 times in a graph gives 28 layers of one name, and a warning for all but the first.
"""

from collections.abc import Iterable, Mapping

import onnx

from plugins.registry import OP_DOMAIN


def inline_calls(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Replace every call of our functions of these names, in place; the functions themselves go.

    A value of the body becomes `CALL/VALUE`, a node `CALL/FIRST_OUTPUT`, with the name of the call in front: names stay
    unique if those of the calls are. Calls inside the body stay calls. What the graph reads and writes keeps its name.

    Args:
        model: its own graph may call the functions; other functions may not.
        names: of functions in our domain, whose bodies have no attributes and no subgraphs.
    """
    wanted = set(names)
    bodies = {f.name: f for f in model.functions if f.domain == OP_DOMAIN and f.name in wanted}
    nodes = [part for node in model.graph.node for part in _expanded(node, bodies)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    kept = [f for f in model.functions if f.domain != OP_DOMAIN or f.name not in bodies]
    del model.functions[:]
    model.functions.extend(kept)


def _expanded(node: onnx.NodeProto, bodies: Mapping[str, onnx.FunctionProto]) -> Iterable[onnx.NodeProto]:
    body = bodies.get(node.op_type) if node.domain == OP_DOMAIN else None
    if body is None:
        return [node]
    assert node.name, f"a call of {node.op_type} without a name"
    names = {"": ""}
    names |= dict(zip(body.input, node.input, strict=True))
    names |= dict(zip(body.output, node.output, strict=True))
    return [_renamed(part, node.name, names) for part in body.node]


def _renamed(part: onnx.NodeProto, call: str, names: Mapping[str, str]) -> onnx.NodeProto:
    """A copy of a body's node with the call's values in place of the body's."""
    assert not any(a.ref_attr_name or a.HasField("g") for a in part.attribute), part.op_type
    copy = onnx.NodeProto()
    copy.CopyFrom(part)
    copy.name = f"{call}/{part.output[0]}"
    copy.input[:] = [names.get(value, f"{call}/{value}") for value in part.input]
    copy.output[:] = [names.get(value, f"{call}/{value}") for value in part.output]
    return copy
