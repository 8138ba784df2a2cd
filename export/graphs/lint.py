"""Lint of a graph for what TensorRT's ONNX parser silently gets wrong or refuses.

The rules come from the parser's source (onnx-tensorrt 5ab48c5c) and from builds with TensorRT-RTX 1.7. Each one is a
function from a model to its findings. `tests/support/parser_traps.py` holds a model for each, and a test shows what
TensorRT-RTX does with it today.
"""

from collections.abc import Callable, Iterator

import onnx
import onnx_ir as ir

from export.graphs import lint_calls, lint_ops
from export.graphs.lint_quantized import QUANTIZED_RULES


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
    """What TensorRT would trip over, one sentence a finding; empty for a sound graph.

    Ops are only looked at in a graph whose calls are sound: others cannot be inlined.
    """
    findings = [finding for rule in CALL_RULES for finding in rule(model)]
    if findings:
        return findings
    flat = lint_ops.inlined(model)
    return [finding for rule in OP_RULES for finding in rule(flat)]


Rule = Callable[[onnx.ModelProto], Iterator[str]]

CALL_RULES: tuple[Rule, ...] = (
    lint_calls.function_names_are_unique,
    lint_calls.foreign_ops_have_their_own_names,
    lint_calls.plugin_nodes_are_top_level,
    lint_calls.calls_are_complete,
    lint_calls.functions_share_the_models_opset,
    lint_calls.calls_are_shallow,
)
OP_RULES: tuple[Rule, ...] = (
    lint_ops.attention_is_plain,
    lint_ops.attention_is_scaled_in_float32,
    lint_ops.native_attention_has_a_kernel,
    lint_ops.caches_are_updated_in_place,
    lint_ops.no_refused_ops,
    lint_ops.rotary_tables_have_the_inputs_type,
    lint_ops.weights_have_importable_types,
    lint_ops.quantization_is_symmetric,
    *QUANTIZED_RULES,
)
