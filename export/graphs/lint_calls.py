"""Lint of nodes and calls: TensorRT's parser finds the right importer, and takes every function call.

Rules on names, domains and calls. They are about the file as it is; `lint_ops` looks at the ops once calls are sound.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import onnx

from plugins.onnx.native_layers import DIST_COLLECTIVE, KV_CACHE_UPDATE, NATIVE_ATTENTION
from plugins.registry import OP_DOMAIN

Findings = Iterator[str]

NATIVE_OPS = frozenset({NATIVE_ATTENTION.name, KV_CACHE_UPDATE.name, DIST_COLLECTIVE.name})
"""TensorRT takes these for its own layers; their functions are for everyone else."""

_MAX_NESTING = 24  # calls inside each other; TensorRT-RTX 1.7 refuses one more


def function_names_are_unique(model: onnx.ModelProto) -> Findings:
    """The parser keys functions by name alone: of two with one name, the first silently serves both."""
    counts = Counter(function.name for function in model.functions)
    for name, count in counts.items():
        if count > 1:
            yield f"{count} functions are named {name}: the parser ignores domains and would use the first for all"
        if onnx.defs.has(name):
            yield f"function {name} is named like a built-in op: the parser would take the built-in"


def foreign_ops_have_their_own_names(model: onnx.ModelProto) -> Findings:
    """An op of another domain that is named like a built-in is silently parsed as the built-in."""
    functions = {function.name for function in model.functions}
    for node in all_nodes(model):
        if node.domain and node.op_type not in functions and onnx.defs.has(node.op_type):
            yield (
                f"{node.domain}.{label(node)}: the parser ignores domains and would take the built-in {node.op_type}"
            )


def plugin_nodes_are_top_level(model: onnx.ModelProto) -> Findings:
    """A node inside a function body never becomes a plugin."""
    for function in model.functions:
        for node in function.node:
            if any(attribute.name == "plugin_namespace" for attribute in node.attribute):
                yield f"{node.op_type} asks for a plugin inside function {function.name}: move it to the main graph"


def calls_are_complete(model: onnx.ModelProto) -> Findings:
    """A call of a function gives every input and names every output."""
    functions = {function.name: function for function in model.functions}
    for node in all_nodes(model):
        function = functions.get(node.op_type)
        if node.op_type in NATIVE_OPS:
            continue  # the parser never calls their functions
        if function is None:
            if node.domain == OP_DOMAIN and not onnx.defs.has(node.op_type):
                yield f"{label(node)} has no function body"
            continue
        if len(node.input) != len(function.input) or not all(node.input):
            yield f"{label(node)} must give all {len(function.input)} inputs of its function"
        if len(node.output) != len(function.output) or not all(node.output):
            yield f"{label(node)} must name all {len(function.output)} outputs of its function"


def functions_share_the_models_opset(model: onnx.ModelProto) -> Findings:
    """A function's own opset is ignored: its nodes are read as the model's opset has them."""
    of_model = {opset.domain: opset.version for opset in model.opset_import}
    for function in model.functions:
        for opset in function.opset_import:
            if not opset.domain and opset.version != of_model.get(""):
                yield (
                    f"function {function.name} imports opset {opset.version}, the model {of_model.get('')}: "
                    "the parser would read it as the model's"
                )


def calls_are_shallow(model: onnx.ModelProto) -> Findings:
    """Function calls nest to a depth that TensorRT limits."""
    functions = {function.name: function for function in model.functions}

    def depth(name: str, callers: tuple[str, ...]) -> int:
        if name not in functions or name in callers:
            return 0
        inside = (depth(node.op_type, (*callers, name)) for node in functions[name].node)
        return 1 + max(inside, default=0)

    deepest = max((depth(node.op_type, ()) for node in model.graph.node), default=0)
    if deepest > _MAX_NESTING:
        yield f"function calls are {deepest} deep: the parser takes {_MAX_NESTING}"


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node that a parser reads; portable bodies included, since a target without its own would run them."""
    yield from with_subgraphs(model.graph.node)
    for function in model.functions:
        yield from with_subgraphs(function.node)


def with_subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those in the bodies of loops and branches among them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from with_subgraphs(attribute.g.node)


def label(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name!r}" if node.name else node.op_type
