"""The attentions for TensorRT beside the fused one: equal to the reference, built for any head counts, float32 sums."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto

from engines.backends.tensorrt.attention import MOST_FLOAT32_TOKENS
from plugins.cached_attention.reference import cached_attention_reference
from plugins.onnx.inline import inline_calls
from plugins.patch_attention.reference import patch_attention_reference
from plugins.registry import CACHED_ATTENTION, PATCH_ATTENTION
from tests.plugins.onnx.test_native import (
    TOLERANCE,
    as_dtype,
    cache_inputs,
    patch_inputs,
    rtx_model,
    with_static_dims,
)
from tests.support.rtx_kernels import attention_kernels
from tests.support.rtx_models import ask_rtx, request


def run(signature, inputs, body):
    model = rtx_model(signature, inputs, body)
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # TensorScatter warns when past and present are not one buffer, as here
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, dict(zip(signature.inputs, inputs, strict=True)))


@pytest.mark.parametrize("body", ["folded", "folded_decomposable", "plain"])
@pytest.mark.parametrize(("num_heads", "kv_heads"), [(12, 2), (7, 1), (28, 4), (3, 3), (1, 1)])
@pytest.mark.parametrize(
    ("num_tokens", "write_index", "kv_lengths"),
    [
        (5, [0, 0, 0], [5, 3, 1]),  # prefill of unequal rows
        (1, [7, 0, 19], [8, 1, 20]),  # decode of unequal rows
        (4, [6, 2], [10, 4]),  # a padded chunk past a filled cache
    ],
)
def test_a_folded_attention_equals_the_reference_padding_included(
    body, num_heads, kv_heads, num_tokens, write_index, kv_lengths
):
    inputs = cache_inputs(num_tokens, write_index, kv_lengths, num_heads, kv_heads)
    results = run(CACHED_ATTENTION, inputs, body)
    expected = cached_attention_reference(*(torch.from_numpy(array) for array in inputs))
    for result, right in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, right.numpy(), atol=TOLERANCE)


@pytest.mark.parametrize("lengths", [[12], [4, 12, 8], [1, 1, 3], [84, 1]])
def test_the_plain_vision_attention_equals_the_reference(lengths):
    inputs = patch_inputs(lengths)
    (result,) = run(PATCH_ATTENTION, inputs, "plain")
    expected = patch_attention_reference(*(torch.from_numpy(array) for array in inputs))
    np.testing.assert_allclose(result, expected.numpy(), atol=TOLERANCE)


# What NVIDIA's own compiler makes of them


def asked(
    directory, body, num_heads, kv_heads, head_dim, capacity, dtype=TensorProto.BFLOAT16, queries=(1, 64, 256)
):
    """The cached attention alone, in one profile of a prefill or, with queries of 1, of decode."""
    inputs = cache_inputs(1, [0], [1], num_heads, kv_heads, head_dim, capacity)
    model = rtx_model(CACHED_ATTENTION, inputs, body)
    dynamic: dict[str, tuple[int, ...]] = {
        name: (0, 1) if name in "qkv" else (0,) for name in CACHED_ATTENTION.inputs
    }
    model = with_static_dims(as_dtype(model, dtype), inputs, dynamic)
    model.graph.node[0].name = "/call"
    inline_calls(model, [CACHED_ATTENTION.name])
    shapes = {
        name: [
            [batch, *((size, *array.shape[2:]) if name in "qkv" else array.shape[1:])]
            for batch, size in zip((1, 2, 4), queries, strict=True)
        ]
        for name, array in zip(CACHED_ATTENTION.inputs, inputs, strict=True)
    }
    path = directory / f"{len(list(directory.iterdir()))}.onnx"
    return request(path, model, shapes, engine=path.with_suffix(".engine"))


def answers_and_sums(requests):
    """What RTX said of each, and the types in which its kernels add."""
    answers = ask_rtx(requests)
    assert [answer["errors"] for answer in answers] == [[]] * len(requests)
    return [
        {dtype for kernel in attention_kernels(Path(one["engine"])) for dtype in kernel.sum_dtypes}
        for one in requests
    ]


DECODE, PREFILL = (1, 1, 1), (1, 64, 256)
FOLDED_SHAPES = [
    (12, 2, 4096),
    (12, 2, 32_768),
    (28, 4, 32_768),
    (14, 2, 16_384),
    (15, 5, 16_384),
    (64, 8, 16_384),
]
FOLDED_GROUPS = (2, 3, 6, 7, 8, 16)


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("queries", "shapes", "groups"),
    [
        (DECODE, [(28, 4, 32_768), (15, 5, 16_384)], (2, 7)),
        (PREFILL, [(12, 2, 4096)], (16,)),
        pytest.param(DECODE, FOLDED_SHAPES, FOLDED_GROUPS, marks=pytest.mark.slow),
        pytest.param(PREFILL, FOLDED_SHAPES, FOLDED_GROUPS, marks=pytest.mark.slow),
    ],
)
def test_rtx_adds_in_float32_at_every_context_where_heads_are_folded(tmp_path, queries, shapes, groups):
    requests = [asked(tmp_path, "folded", h, k, 128, tokens, queries=queries) for h, k, tokens in shapes]
    for num_heads in groups:
        requests += [
            asked(tmp_path, "folded_decomposable", num_heads, 1, 128, tokens, queries=queries)
            for tokens in (1024, 32_768)
        ]
    assert answers_and_sums(requests) == [{"float32"}] * len(requests)


@pytest.mark.tensorrt
def test_rtx_adds_scores_in_low_precision_beyond_the_limit_that_the_build_keeps(tmp_path):
    """If this fails, NVIDIA mended it, and the limit may go."""
    requests = [
        asked(tmp_path, "fused", heads, kv_heads, 128, tokens, queries=DECODE)
        for heads, kv_heads in ((12, 2), (28, 4))
        for tokens in (MOST_FLOAT32_TOKENS, MOST_FLOAT32_TOKENS + 1)
    ]
    assert answers_and_sums(requests) == 2 * [{"float32"}, {"float32", "bfloat16"}]


@pytest.mark.tensorrt
@pytest.mark.parametrize("queries", [DECODE, PREFILL])
def test_rtx_builds_plain_products_for_any_head_shape(tmp_path, queries):
    shapes = [(1, 1, 128), (3, 1, 128), (4, 2, 20), (7, 7, 40), (12, 2, 128)]
    requests = [asked(tmp_path, "plain", *shape, 1024, queries=queries) for shape in shapes]
    requests.append(asked(tmp_path, "plain", 3, 1, 128, 1024, TensorProto.FLOAT, queries=queries))
    assert answers_and_sums(requests) == [{"float32"}] * len(requests)
