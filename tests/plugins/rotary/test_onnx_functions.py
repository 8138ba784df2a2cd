import numpy as np
import pytest
import torch

from plugins.registry import ROTARY
from plugins.rotary import onnx_functions
from plugins.rotary.reference import (
    mrope_axes,
    mrope_frequencies,
    patch_axes,
    patch_frequencies,
    rotary_reference,
)
from tests.support.op_models import Array, normal, run_with_onnx_reference, run_with_onnxruntime

# float32 rounding of one product and one sum of values near 4, and of cosines at angles of up to 1e5 radians.
TOLERANCE = 2e-6

MROPE_2B = (mrope_frequencies(128, 1e6).numpy(), mrope_axes((16, 24, 24)).numpy(), 12, 2, 3)
MROPE_ODD = (mrope_frequencies(32, 1e4).numpy(), mrope_axes((4, 5, 7)).numpy(), 6, 1, 3)
VISION = (patch_frequencies(80).numpy(), patch_axes(80).numpy(), 16, 16, 2)


def rotary_inputs(case: tuple[Array, Array, int, int, int], num_tokens: int) -> list[Array]:
    frequencies, axis_of, num_heads, num_key_heads, num_axes = case
    rng = np.random.default_rng(num_tokens)
    head_dim = 2 * len(frequencies)
    positions = rng.integers(0, 120_000, (num_axes, num_tokens)).astype(np.int32)
    q, k = normal(rng, num_tokens, num_heads, head_dim), normal(rng, num_tokens, num_key_heads, head_dim)
    return [q, k, positions, frequencies, axis_of]


@pytest.mark.parametrize("num_tokens", [1, 7])
@pytest.mark.parametrize("case", [MROPE_2B, MROPE_ODD, VISION], ids=["mrope-2b", "mrope-odd", "vision"])
@pytest.mark.parametrize("run", [run_with_onnxruntime, run_with_onnx_reference])
@pytest.mark.parametrize(
    "body",
    [onnx_functions.portable(), onnx_functions.onnxruntime(), onnx_functions.onnxruntime_cuda()],
    ids=["portable", "ort", "cuda"],
)
def test_bodies_equal_the_reference(body, run, case, num_tokens):
    inputs = rotary_inputs(case, num_tokens)
    expected = rotary_reference(*(torch.from_numpy(array) for array in inputs))
    for result, truth in zip(run(ROTARY, body, inputs), expected, strict=True):
        np.testing.assert_allclose(result, truth.numpy(), atol=TOLERANCE)
