import numpy as np
import pytest
import torch

from plugins.patch_attention import onnx_functions
from plugins.patch_attention.reference import patch_attention_reference
from plugins.registry import PATCH_ATTENTION
from tests.support.op_models import Array, normal, run_with_onnx_reference, run_with_onnxruntime

TOLERANCE = 3e-6  # float32 sums of up to 84 products near 1, ordered differently by each implementation

SEGMENTS = {
    "one": [12],
    "unequal": [4, 12, 8],
    "equal": [4, 4, 4, 4, 4],
    "single patches": [1, 1, 3],
    "many": [4] * 21,
}


def attention_inputs(lengths: list[int], num_heads: int, head_dim: int) -> list[Array]:
    rng = np.random.default_rng(sum(lengths))
    q, k, v = (normal(rng, sum(lengths), num_heads, head_dim) for _ in range(3))
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return [q, k, v, cu_seqlens, np.arange(max(lengths), dtype=np.int32)]


@pytest.mark.parametrize("lengths", SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.parametrize(("num_heads", "head_dim"), [(16, 80), (2, 32), (1, 8)])
@pytest.mark.parametrize(
    ("target", "run"),
    [
        ("portable", run_with_onnxruntime),
        ("portable", run_with_onnx_reference),
        ("ort", run_with_onnxruntime),
        ("cuda", run_with_onnxruntime),
    ],
)
def test_bodies_equal_the_reference(target, run, num_heads, head_dim, lengths):
    body = {
        "portable": onnx_functions.portable(),
        "ort": onnx_functions.onnxruntime(num_heads),
        "cuda": onnx_functions.onnxruntime_cuda(num_heads, "float32"),
    }[target]
    inputs = attention_inputs(lengths, num_heads, head_dim)
    expected = patch_attention_reference(*(torch.from_numpy(array) for array in inputs))
    (result,) = run(PATCH_ATTENTION, body, inputs)
    np.testing.assert_allclose(result, expected.numpy(), atol=TOLERANCE)


@pytest.mark.parametrize(
    "body", [onnx_functions.portable(), onnx_functions.onnxruntime(2)], ids=["portable", "ort"]
)
def test_a_changed_segment_changes_no_other(body):
    inputs = attention_inputs([4, 8, 4], 2, 32)
    (before,) = run_with_onnxruntime(PATCH_ATTENTION, body, inputs)
    for tensor in inputs[:3]:
        tensor[4:12] += 100
    (after,) = run_with_onnxruntime(PATCH_ATTENTION, body, inputs)
    assert np.array_equal(before[:4], after[:4])
    assert np.array_equal(before[12:], after[12:])
    assert not np.allclose(before[4:12], after[4:12])
