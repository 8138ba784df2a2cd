"""TensorRT-RTX's bodies: equal to the reference where standard ONNX stands in for native layers, and they compile."""

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto

from export.graphs.lint import lint
from plugins.cached_attention import onnx_functions as cached_attention
from plugins.cached_attention.reference import cached_attention_reference
from plugins.onnx.function_body import function_from_body
from plugins.onnx.native import choose_native_bodies
from plugins.patch_attention import onnx_functions as patch_attention
from plugins.patch_attention.reference import patch_attention_reference
from plugins.registry import (
    CACHED_ATTENTION,
    PATCH_ATTENTION,
    PLUGIN_ATTRIBUTES,
    ROTARY,
    AttentionBody,
    OpSignature,
)
from plugins.rotary import onnx_functions as rotary
from tests.support.op_models import normal, op_model
from tests.support.rtx_models import ask_rtx, request

TOLERANCE = 3e-6  # float32 sums of up to 84 products near 1, in another order

PORTABLE = {
    ROTARY.name: rotary.portable(),
    PATCH_ATTENTION.name: patch_attention.portable(),
    CACHED_ATTENTION.name: cached_attention.portable(),
}


def patch_inputs(lengths, num_heads=2, head_dim=80):
    rng = np.random.default_rng(len(lengths))
    q, k, v = (normal(rng, sum(lengths), num_heads, head_dim) for _ in range(3))
    offsets = np.array([0, *itertools.accumulate(lengths)], np.int32)
    return [q, k, v, offsets, np.arange(max(lengths), dtype=np.int32)]


def cache_inputs(num_tokens, write_index, kv_lengths, num_heads=12, kv_heads=2, head_dim=32, capacity=20):
    rng, batch = np.random.default_rng(num_tokens), len(write_index)
    shapes = [(batch, num_tokens, heads, head_dim) for heads in (num_heads, kv_heads, kv_heads)]
    shapes += 2 * [(batch, kv_heads, capacity, head_dim)]
    lengths = [np.array(x, np.int64) for x in (write_index, kv_lengths)]
    return [*(normal(rng, *shape) for shape in shapes), *lengths]


def rotary_inputs(num_heads=28, kv_heads=4, head_dim=128):
    q, k = np.zeros((3, num_heads, head_dim), np.float32), np.zeros((3, kv_heads, head_dim), np.float32)
    half = head_dim // 2
    return [q, k, np.zeros((3, 3), np.int32), np.zeros(half, np.float32), np.zeros(half, np.int32)]


def rtx_model(signature: OpSignature, inputs, attention: AttentionBody = "decomposable") -> onnx.ModelProto:
    model = op_model(signature, PORTABLE[signature.name], inputs)
    choose_native_bodies(model, attention)
    return model


def run(signature: OpSignature, inputs):
    model = rtx_model(signature, inputs)
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # TensorScatter warns when past and present are not one buffer, as here
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, dict(zip(signature.inputs, inputs, strict=True)))


@pytest.mark.parametrize("lengths", [[12], [4, 12, 8], [1, 1, 3], [4] * 60, [84, 1]])
def test_the_padded_vision_body_equals_the_reference(lengths):
    inputs = patch_inputs(lengths)
    (result,) = run(PATCH_ATTENTION, inputs)
    expected = patch_attention_reference(*(torch.from_numpy(array) for array in inputs))
    np.testing.assert_allclose(result, expected.numpy(), atol=TOLERANCE)


def test_no_two_padded_rows_go_to_one_patch():
    """A GPU scatters in any order; ONNX Runtime's order would hide a second writer."""
    body = patch_attention.tensorrt_rtx()
    slots = OpSignature("Slots", PATCH_ATTENTION.inputs, ("slot_row",), {})
    function = onnx.FunctionProto()
    function.CopyFrom(body)
    function.name, function.output[:] = slots.name, list(slots.outputs)
    last = next(i for i, node in enumerate(function.node) if node.output[0] == "slot_row")
    del function.node[last + 1 :]
    nodes = [node for node in function.node if node.domain == ""]
    del function.node[:]
    function.node.extend(node for node in nodes if "attended" not in " ".join([*node.input, *node.output]))
    function.attribute[:] = []
    model = op_model(slots, function, patch_inputs([4, 12, 8, 1]))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    session = ort.InferenceSession(model.SerializeToString())
    (slot,) = session.run(None, dict(zip(slots.inputs, patch_inputs([4, 12, 8, 1]), strict=True)))
    assert sorted(slot[slot < 25]) == list(range(25))
    assert (slot[slot >= 25] == 25).all()


def test_a_longer_segment_range_than_needed_changes_nothing():
    inputs = patch_inputs([4, 12, 8])
    (expected,) = run(PATCH_ATTENTION, inputs)
    (result,) = run(PATCH_ATTENTION, [*inputs[:4], np.arange(31, dtype=np.int32)])
    np.testing.assert_allclose(result, expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("num_tokens", "write_index", "kv_lengths"),
    [
        (5, [0], [5]),
        (5, [0, 0, 0], [5, 3, 1]),  # prefill of unequal rows
        (1, [7, 0, 19], [8, 1, 20]),  # decode of unequal rows
        (4, [6, 2], [10, 4]),  # a padded chunk past a filled cache
    ],
)
def test_the_native_cache_body_equals_the_reference_on_every_valid_token(num_tokens, write_index, kv_lengths):
    inputs = cache_inputs(num_tokens, write_index, kv_lengths)
    attended, *caches = run(CACHED_ATTENTION, inputs)
    expected, *expected_caches = cached_attention_reference(*(torch.from_numpy(array) for array in inputs))
    assert np.isfinite(attended).all()
    for row, (start, end) in enumerate(zip(write_index, kv_lengths, strict=True)):
        valid = slice(0, end - start)
        np.testing.assert_allclose(attended[row, valid], expected[row, valid], atol=TOLERANCE)
        for cache, expected_cache in zip(caches, expected_caches, strict=True):
            np.testing.assert_array_equal(cache[row, :, :end], expected_cache[row, :, :end])


def test_a_graph_with_both_attentions_is_refused():
    model = op_model(PATCH_ATTENTION, PORTABLE[PATCH_ATTENTION.name], patch_inputs([4]))
    model.functions.append(PORTABLE[CACHED_ATTENTION.name])
    with pytest.raises(ValueError, match="a vision or a decoder graph"):
        choose_native_bodies(model)


@pytest.mark.parametrize("signature", [ROTARY, PATCH_ATTENTION])
def test_plugin_nodes_stay_top_level_under_unique_names(signature):
    inputs = rotary_inputs() if signature is ROTARY else patch_inputs([4])
    model = rtx_model(signature, inputs)
    (node,) = [node for node in model.graph.node if node.op_type == signature.name]
    carried = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert {
        name: value if isinstance(value, int) else value.decode() for name, value in carried.items()
    } == dict(PLUGIN_ATTRIBUTES)
    names = [function.name for function in model.functions]
    assert len(set(names)) == len(names)
    assert not any("plugin" in finding or "unique" in finding for finding in lint(model))


# What NVIDIA's own parser and compiler say


def as_dtype(model: onnx.ModelProto, dtype: int) -> onnx.ModelProto:
    """Turn the graph's float32 inputs and outputs into `dtype`, but for the frequencies, which are float32 always."""
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name != "frequencies":
            value.type.tensor_type.elem_type = dtype
    return model


def with_static_dims(model: onnx.ModelProto, inputs, dynamic: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Heads, head sizes and cache capacity are constants of an engine."""
    arrays = dict(zip([value.name for value in model.graph.input], inputs, strict=True))
    for name, array in arrays.items():
        value = next(value for value in model.graph.input if value.name == name)
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if axis not in dynamic.get(name, ()):
                dim.dim_value = array.shape[axis]
    return model


def vision_request(tmp_path, dtype, attention: AttentionBody):
    inputs = patch_inputs([4], num_heads=16)
    model = rtx_model(PATCH_ATTENTION, inputs, attention)
    dynamic: dict[str, tuple[int, ...]] = dict.fromkeys(PATCH_ATTENTION.inputs, (0,))
    shapes = {name: [[size, 16, 80] for size in (4, 1024, 16_384)] for name in "qkv"}
    shapes |= {"cu_seqlens": [[2], [5], [65]], "segment_range": [[4], [256], [16_384]]}
    return save(tmp_path, with_static_dims(as_dtype(model, dtype), inputs, dynamic), shapes)


def decoder_request(tmp_path, num_tokens):
    inputs = cache_inputs(1, [0], [1], head_dim=128, capacity=4096)
    model = rtx_model(CACHED_ATTENTION, inputs, "fused")
    dynamic: dict[str, tuple[int, ...]] = {
        name: (0, 1) if name in "qkv" else (0,) for name in CACHED_ATTENTION.inputs
    }
    shapes = {}
    for name, array in zip(CACHED_ATTENTION.inputs, inputs, strict=True):
        tokens = zip((1, 4, 8), num_tokens, strict=True)
        shapes[name] = [
            [batch, *((size, *array.shape[2:]) if name in "qkv" else array.shape[1:])]
            for batch, size in tokens
        ]
    model = with_static_dims(as_dtype(model, TensorProto.BFLOAT16), inputs, dynamic)
    return save(tmp_path, model, shapes)


def rotary_request(tmp_path):
    inputs = rotary_inputs()
    dynamic: dict[str, tuple[int, ...]] = {"q": (0,), "k": (0,), "positions": (1,)}
    shapes = {name: [[size, heads, 128] for size in (1, 64, 4096)] for name, heads in (("q", 28), ("k", 4))}
    shapes["positions"] = [[3, size] for size in (1, 64, 4096)]
    model = as_dtype(rtx_model(ROTARY, inputs), TensorProto.BFLOAT16)
    return save(tmp_path, with_static_dims(model, inputs, dynamic), shapes)


def save(tmp_path, model, shapes):
    return request(tmp_path / f"{len(list(tmp_path.iterdir()))}.onnx", model, shapes)


@pytest.mark.tensorrt
def test_rtx_compiles_every_body_to_fused_kernels_for_real_sizes(tmp_path):
    requests = [
        vision_request(tmp_path, TensorProto.BFLOAT16, "fused"),
        vision_request(tmp_path, TensorProto.FLOAT16, "fused"),
        vision_request(tmp_path, TensorProto.FLOAT, "decomposable"),
        decoder_request(tmp_path, num_tokens=(1, 64, 2048)),
        decoder_request(tmp_path, num_tokens=(1, 1, 1)),
        rotary_request(tmp_path),
    ]
    results = ask_rtx(requests)
    assert [result["errors"] for result in results] == [[]] * len(requests)
    assert all(result["bytes"] > 10_000 for result in results)
    assert results[0]["inputs"] == list(PATCH_ATTENTION.inputs)
    assert results[3]["inputs"] == list(CACHED_ATTENTION.inputs)


@pytest.mark.tensorrt
def test_rtx_refuses_what_has_no_fused_kernel_unless_it_may_decompose(tmp_path):
    (result,) = ask_rtx([vision_request(tmp_path, TensorProto.FLOAT, "fused")])
    assert result["parsed"]
    assert not result["built"]
    assert "is_decomposable" in str(result["errors"])


@pytest.mark.tensorrt
def test_rtx_reads_the_chosen_body_not_the_function_that_stands_in_for_a_native_layer(tmp_path):
    """A broken stand-in would fail every build if the parser read it."""
    asked = vision_request(tmp_path, TensorProto.BFLOAT16, "fused")
    model = onnx.load(asked["path"])
    names = [function.name for function in model.functions]
    broken = function_from_body(
        OpSignature(
            "TRT_Attention", ("q", "k", "v", "mask", "query_lengths", "kv_lengths"), ("attended",), {}
        ),
        "attended = NonZero(q)",
    )
    model.functions[names.index("TRT_Attention")].CopyFrom(broken)
    Path(asked["path"]).write_bytes(model.SerializeToString())
    (result,) = ask_rtx([asked])
    assert result["built"]
