"""Does a graph avoid what TensorRT's ONNX parser silently gets wrong or refuses?

The rules come from the parser's source (onnx-tensorrt 5ab48c5c) and from builds with TensorRT-RTX 1.7. Each one is a
function from a model to its findings, and stands in `RULES`.
"""

from collections import Counter
from collections.abc import Callable, Iterator

import onnx
import onnx_ir as ir
from onnx import TensorProto

from plugins.registry import OP_DOMAIN

Findings = Iterator[str]


def check_graph(model: ir.Model) -> None:
    """Run `onnx.checker` with full shape inference, and every rule; weights are not read.

    Raises:
        ValueError: with all findings. The exporter made the graph, so this is its fault and not the user's.
    """
    proto = without_weights(ir.to_proto(model))
    onnx.checker.check_model(proto, full_check=True)
    findings = lint(proto)
    if findings:
        raise ValueError("The graph would not survive TensorRT's parser:\n- " + "\n- ".join(findings))


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with external initializers as inputs, so that it can be checked apart from their files."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    embedded = [tensor for tensor in light.graph.initializer if not tensor.external_data]
    light.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in light.graph.initializer
        if tensor.external_data
    )
    del light.graph.initializer[:]
    light.graph.initializer.extend(embedded)
    return light


def lint(model: onnx.ModelProto) -> list[str]:
    """What TensorRT would trip over, one sentence a finding; empty for a sound graph."""
    return [finding for rule in RULES for finding in rule(model)]


def _function_names_are_unique(model: onnx.ModelProto) -> Findings:
    """The parser keys functions by name alone: of two with one name, the first silently serves both."""
    counts = Counter(function.name for function in model.functions)
    for name, count in counts.items():
        if count > 1:
            yield f"{count} functions are named {name}: the parser ignores domains and would use the first for all"
        if onnx.defs.has(name):
            yield f"function {name} is named like a built-in op: the parser would take the built-in"


def _plugin_nodes_are_top_level(model: onnx.ModelProto) -> Findings:
    """A node inside a function body never becomes a plugin."""
    for function in model.functions:
        for node in function.node:
            if any(attribute.name == "plugin_namespace" for attribute in node.attribute):
                yield f"{node.op_type} asks for a plugin inside function {function.name}: move it to the main graph"


def _calls_are_complete(model: onnx.ModelProto) -> Findings:
    """A call of a function gives every input and names every output."""
    functions = {function.name: function for function in model.functions}
    for node in _all_nodes(model):
        function = functions.get(node.op_type)
        if function is None:
            if node.domain == OP_DOMAIN:
                yield f"{_label(node)} has no function body"
            continue
        if len(node.input) != len(function.input) or not all(node.input):
            yield f"{_label(node)} must give all {len(function.input)} inputs of its function"
        if len(node.output) != len(function.output) or not all(node.output):
            yield f"{_label(node)} must name all {len(function.output)} outputs of its function"


def _attention_is_plain(model: onnx.ModelProto) -> Findings:
    """Of the standard `Attention`, the parser takes q, k, v and either a mask or causality."""
    for node in _all_nodes(model):
        if node.op_type != "Attention":
            continue
        inputs = [*node.input, *[""] * (7 - len(node.input))]
        causal = any(attribute.name == "is_causal" and attribute.i for attribute in node.attribute)
        if inputs[4] or inputs[5]:
            yield f"{_label(node)} has past_key or past_value: the parser refuses them"
        if inputs[6]:
            yield f"{_label(node)} has nonpad_kv_seqlen: the parser silently ignores it"
        if causal and inputs[3]:
            yield f"{_label(node)} is causal and has a mask: the parser refuses both together"
        if len(node.output) > 1:
            yield f"{_label(node)} has more than one output: the parser refuses them"


def _no_refused_ops(model: onnx.ModelProto) -> Findings:
    """Ops whose output size depends on values fail, and sequences have no importer."""
    refused = {"NonZero", "SplitToSequence", "SequenceAt", "SequenceInsert", "ConcatFromSequence"}
    for node in _all_nodes(model):
        if node.op_type in refused:
            yield f"{_label(node)}: TensorRT cannot import {node.op_type}"


def _weights_have_importable_types(model: onnx.ModelProto) -> Findings:
    """TensorRT imports no unsigned 4-bit and no E8M0 initializer: quantization must be symmetric."""
    refused = {TensorProto.UINT4: "UINT4", TensorProto.FLOAT8E8M0: "FLOAT8E8M0"}
    for tensor in model.graph.initializer:
        if tensor.data_type in refused:
            yield f"initializer {tensor.name} is {refused[tensor.data_type]}: TensorRT cannot import it"


RULES: tuple[Callable[[onnx.ModelProto], Findings], ...] = (
    _function_names_are_unique,
    _plugin_nodes_are_top_level,
    _calls_are_complete,
    _attention_is_plain,
    _no_refused_ops,
    _weights_have_importable_types,
)


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node that a parser reads; portable bodies included, since a target without its own would run them."""
    yield from model.graph.node
    for function in model.functions:
        yield from function.node


def _label(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name!r}" if node.name else node.op_type
