import numpy as np
import pytest
import torch

from plugins.cached_attention import onnx_functions
from plugins.cached_attention.reference import cached_attention_reference
from plugins.registry import CACHED_ATTENTION
from tests.support.op_models import Array, normal, run_with_onnx_reference, run_with_onnxruntime

TOLERANCE = 2e-6  # float32 sums of up to 20 products near 1, ordered differently by each implementation
CAPACITY = 20

# (S, write_index, kv_lengths); the valid tokens of row b are kv_lengths[b] - write_index[b].
CALLS = {
    "prefill": (5, [0], [5]),
    "prefill of unequal rows": (5, [0, 0, 0], [5, 3, 1]),
    "decode": (1, [7], [8]),
    "decode of unequal rows": (1, [7, 0, 19], [8, 1, 20]),
    "chunk after a chunk": (4, [6], [10]),
    "chunks after unequal chunks": (4, [6, 2], [10, 6]),
    "padded chunk": (4, [6, 2], [10, 4]),
}
# What onnxruntime's body takes: engines.backends.onnxruntime.session splits the rest into such calls.
CALLS_OF_ORT = (
    "prefill",
    "prefill of unequal rows",
    "decode",
    "decode of unequal rows",
    "chunk after a chunk",
)
HEADS = [(12, 2, 32), (8, 1, 8), (2, 2, 16)]  # H, K, D: GQA ratios of 2B and 72B, and none


def attention_inputs(call: tuple[int, list[int], list[int]], heads: tuple[int, int, int]) -> list[Array]:
    (num_tokens, write_index, kv_lengths), (num_heads, num_key_value_heads, head_dim) = call, heads
    batch, rng = len(write_index), np.random.default_rng(num_tokens)
    cache = (batch, num_key_value_heads, CAPACITY, head_dim)
    return [
        normal(rng, batch, num_tokens, num_heads, head_dim),
        normal(rng, batch, num_tokens, num_key_value_heads, head_dim),
        normal(rng, batch, num_tokens, num_key_value_heads, head_dim),
        normal(rng, *cache),
        normal(rng, *cache),
        np.array(write_index, np.int64),
        np.array(kv_lengths, np.int64),
    ]


def assert_valid_parts_equal(results: list[Array], inputs: list[Array]) -> None:
    """Compare what means something: valid tokens' values, and the valid part of the cache."""
    attended, present_key, present_value = cached_attention_reference(
        *(torch.from_numpy(array) for array in inputs)
    )
    for row, (start, end) in enumerate(zip(inputs[5], inputs[6], strict=True)):
        length = end - start
        np.testing.assert_allclose(results[0][row, :length], attended[row, :length], atol=TOLERANCE)
        np.testing.assert_array_equal(results[1][row, :, :end], present_key[row, :, :end])
        np.testing.assert_array_equal(results[2][row, :, :end], present_value[row, :, :end])


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("run", [run_with_onnxruntime, run_with_onnx_reference])
def test_the_portable_body_equals_the_reference(run, call, heads):
    inputs = attention_inputs(call, heads)
    results = run(CACHED_ATTENTION, onnx_functions.portable(), inputs)
    assert np.isfinite(results[0]).all()  # padding rows too
    assert_valid_parts_equal(results, inputs)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("call", CALLS_OF_ORT)
def test_the_onnxruntime_body_equals_the_reference(call, heads):
    inputs = attention_inputs(CALLS[call], heads)
    body = onnx_functions.onnxruntime(heads[0], heads[1])
    assert_valid_parts_equal(run_with_onnxruntime(CACHED_ATTENTION, body, inputs), inputs)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("call", CALLS_OF_ORT)
def test_the_cuda_body_equals_the_reference_on_the_cpu_kernel_of_the_same_operator(call, heads):
    """Row by row where rows have several tokens, as its session calls it."""
    inputs = attention_inputs(CALLS[call], heads)
    body = onnx_functions.onnxruntime_cuda(heads[0], heads[1])
    is_step = inputs[0].shape[1] == 1
    for row in [slice(None)] if is_step else [slice(r, r + 1) for r in range(len(inputs[0]))]:
        alone = [array[row] for array in inputs]
        if not is_step:
            length = int(alone[6][0] - alone[5][0])
            alone[:3] = [array[:, :length] for array in alone[:3]]
        assert_valid_parts_equal(run_with_onnxruntime(CACHED_ATTENTION, body, alone), alone)
