import numpy as np
import pytest

from export.quantization.linear import QuantizedLinear
from tests.support.quantized import random_linear


def test_each_value_is_its_code_less_the_zero_of_its_block_times_that_scale():
    linear = QuantizedLinear(
        "int4",
        np.array([[-8, 7, 0, 3]], np.int8),
        np.array([[0.5, 2.0]], np.float32),
        np.array([[-1, 2]], np.int16),
    )
    assert linear.dequantized().tolist() == [[-3.5, 4.0, -4.0, 2.0]]
    assert linear.block == 2


@pytest.mark.parametrize("precision", ["int4", "int8", "fp8"])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_the_product_with_the_columns_as_stored_is_the_product_with_the_dequantized(precision, asymmetric):
    linear = random_linear(precision, asymmetric=asymmetric, ordered=False)
    x = np.random.default_rng(1).integers(-4, 5, (3, 64)).astype(np.float32)
    zeros = 0 if linear.zeros is None else np.repeat(linear.zeros.astype(np.float32), linear.block, axis=1)
    as_stored = (linear.codes.astype(np.float32) - zeros) * np.repeat(linear.scales, linear.block, axis=1)
    assert linear.order is not None
    np.testing.assert_allclose(x[:, linear.order] @ as_stored.T, x @ linear.dequantized().T, rtol=1e-5)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("codes", np.zeros((4, 8), np.int16)),
        ("scales", np.zeros((4, 3), np.float32)),
        ("scales", np.zeros((4, 2), np.float16)),
        ("zeros", np.zeros((4, 1), np.int16)),
        ("order", np.zeros(7, np.int32)),
    ],
)
def test_parts_that_do_not_fit_are_a_mistake_of_ours(part, value):
    parts = {"codes": np.zeros((4, 8), np.int8), "scales": np.zeros((4, 2), np.float32)}
    with pytest.raises(AssertionError):
        QuantizedLinear("int8", **{**parts, part: value})


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_two_planes_of_4_bits_mean_the_8_bit_weight_in_blocks(asymmetric, ordered):
    linear = random_linear("int8", asymmetric=asymmetric, ordered=ordered)
    linear.codes[0, :4] = [-128, 127, -1, 0]
    planes = linear.in_planes()
    assert planes.precision == "int4"
    assert planes.codes.min() >= -8
    assert planes.codes.max() <= 7
    assert planes.block == linear.block
    np.testing.assert_allclose(planes.dequantized(), linear.dequantized(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(
    "linear", [random_linear("int8", num_blocks=1), random_linear("int4"), random_linear("fp8")]
)
def test_what_consumers_multiply_by_has_no_planes(linear):
    assert linear.in_planes() is linear


@pytest.mark.parametrize(
    ("num_inputs", "block", "smaller"),
    [(192, 192, 64), (1536, 1536, 128), (8960, 128, 128), (384, 96, 32), (128, 128, 64), (48, 24, 24)],
)
def test_blocks_are_cut_to_sizes_that_engines_multiply_by(num_inputs, block, smaller):
    shape = (4, num_inputs // block)
    rng = np.random.default_rng(3)
    linear = QuantizedLinear(
        "int4",
        rng.integers(-8, 8, (4, num_inputs)).astype(np.int8),
        rng.uniform(0.5, 1, shape).astype(np.float32),
        rng.integers(-8, 8, shape).astype(np.int16),
    )
    cut = linear.in_small_blocks()
    assert cut.block == smaller
    assert np.array_equal(cut.dequantized(), linear.dequantized())
