"""The body that calls the two plugins, with functions in their place that say in standard ONNX what they compute."""

import onnx
import onnxruntime as ort
import pytest

from plugins.cached_attention.plugin_body import tensorrt_plugins
from plugins.onnx.function_body import function_from_body
from plugins.onnx.inline import inline_calls
from plugins.onnx.native_layers import kv_cache_update
from plugins.registry import (
    CACHED_ATTENTION,
    CACHED_ATTENTION_COMBINE,
    CACHED_ATTENTION_PARTIALS,
    PLUGIN_ATTRIBUTES,
    known_plugins,
    plugins_of,
)
from tests.plugins.cached_attention.test_onnx_functions import (
    CALLS,
    HEADS,
    assert_valid_parts_equal,
    attention_inputs,
)
from tests.support.op_models import op_model


def one_split() -> list[onnx.FunctionProto]:
    """Both plugins for a single split, whose partial result is the result and whose sum nobody weighs."""
    partials = """
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    zero_1d = Constant<value_ints = [0]>()
    one_1d = Constant<value_ints = [1]>()
    split_axis = Constant<value_ints = [3]>()
    rows_axes = Constant<value_ints = [1, 3]>()
    last_axes = Constant<value_ints = [1, 2, 3]>()
    num_queries_1d = Shape<start = 1, end = 2>(q)
    num_queries = Squeeze(num_queries_1d, zero_1d)
    query = Range(zero, num_queries, one)
    capacity_1d = Shape<start = 2, end = 3>(key)
    capacity = Squeeze(capacity_1d, zero_1d)
    column = Range(zero, capacity, one)
    write_index_64 = Cast<to = 7>(write_index)
    write_column = Unsqueeze(write_index_64, one_1d)
    row = Add(write_column, query)
    row_4d = Unsqueeze(row, rows_axes)
    is_causal = LessOrEqual(column, row_4d)
    kv_lengths_64 = Cast<to = 7>(kv_lengths)
    kv_lengths_4d = Unsqueeze(kv_lengths_64, last_axes)
    is_valid = Less(column, kv_lengths_4d)
    visible = And(is_causal, is_valid)
    q_by_head = Transpose<perm = [0, 2, 1, 3]>(q)
    attended_by_head = Attention(q_by_head, key, value, visible)
    attended = Transpose<perm = [0, 2, 1, 3]>(attended_by_head)
    partials = Unsqueeze(attended, split_axis)
    log_sums = ReduceMax<keepdims = 1>(q, split_axis)
    """
    combine = """
    split_axis = Constant<value_ints = [3]>()
    attended_float = Squeeze(partials, split_axis)
    attended = CastLike(attended_float, q)
    """
    return [
        function_from_body(CACHED_ATTENTION_PARTIALS, partials),
        function_from_body(CACHED_ATTENTION_COMBINE, combine),
    ]


def model_of(inputs):
    """One call with the body in its place, as the parser gets it."""
    model = op_model(CACHED_ATTENTION, tensorrt_plugins(), inputs)
    model.graph.node[0].name = "/QvCachedAttention"
    inline_calls(model, [CACHED_ATTENTION.name])
    model.functions.extend([kv_cache_update(), *one_split()])
    return model


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_plugins_body_equals_the_reference(call, heads):
    inputs = attention_inputs(call, heads)
    model = model_of(inputs)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    results = session.run(None, dict(zip(CACHED_ATTENTION.inputs, inputs, strict=True)))
    assert_valid_parts_equal(results, inputs)


def test_plugins_stand_in_the_main_graph_with_what_the_parser_looks_for():
    model = model_of(attention_inputs(CALLS["decode"], HEADS[0]))
    plugins = (CACHED_ATTENTION_PARTIALS, CACHED_ATTENTION_COMBINE)
    nodes = {node.op_type: node for node in model.graph.node}
    for signature in plugins:
        node = nodes[signature.name]
        found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()} == PLUGIN_ATTRIBUTES
        assert (len(node.input), len(node.output)) == (len(signature.inputs), len(signature.outputs))


def test_the_op_is_two_plugins_and_every_other_at_most_one():
    assert plugins_of("QvCachedAttention") == (
        "qv::QvCachedAttentionPartials/1",
        "qv::QvCachedAttentionCombine/1",
    )
    assert plugins_of("QvRotary") == ("qv::QvRotary/1",)
    assert plugins_of("Softmax") == ()
    assert len(known_plugins()) == 4
