"""Codes that are chosen for inputs, beside the nearest ones."""

import numpy as np
import pytest

from export.quantization.calibration.error_feedback import (
    DAMPING,
    relative_error,
    with_error_feedback,
)
from export.quantization.round_to_nearest import quantize

PRECISIONS = ["int4", "int8", "fp8"]


def weight_and_inputs(num_outputs=24, num_inputs=320, num_tokens=500, rank=40):
    """Inputs that lie near a space of few dimensions, as those of a trained model do, some much larger than others."""
    random = np.random.default_rng(5)
    weight = random.standard_normal((num_outputs, num_inputs)).astype(np.float32)
    basis = random.standard_normal((rank, num_inputs)) * random.lognormal(0, 1.5, num_inputs)
    x = random.standard_normal((num_tokens, rank)) @ basis + 0.05 * random.standard_normal(
        (num_tokens, num_inputs)
    )
    return weight, x.astype(np.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_of_inputs_alike_are_several_times_nearer_than_by_the_nearest_codes(precision):
    weight, x = weight_and_inputs()
    seen, coming = x[:400], x[400:]
    nearest = quantize(weight, precision, "float32", per_token=False)
    better = with_error_feedback(nearest, weight, seen.T @ seen)
    np.testing.assert_array_equal(better.scales, nearest.scales)
    moments = coming.T @ coming
    assert relative_error(better, weight, moments) < relative_error(nearest, weight, moments) / 3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_inputs_that_do_not_vary_together_leave_the_nearest_codes(precision):
    weight, _ = weight_and_inputs()
    nearest = quantize(weight, precision, "bfloat16", per_token=False)
    moments = np.diag(np.linspace(1, 100, weight.shape[1]).astype(np.float32))
    better = with_error_feedback(nearest, weight, moments)
    np.testing.assert_array_equal(better.codes, nearest.codes)


def test_inputs_that_were_never_seen_are_rounded_to_the_nearest():
    weight, x = weight_and_inputs()
    x[:, 7:40] = 0
    nearest = quantize(weight, "int4", "float32", per_token=False)
    better = with_error_feedback(nearest, weight, x.T @ x)
    np.testing.assert_array_equal(better.codes[:, 7:40], nearest.codes[:, 7:40])
    assert (better.codes != nearest.codes).any()


def test_nothing_seen_at_all_leaves_the_nearest_codes():
    weight, _ = weight_and_inputs()
    nearest = quantize(weight, "int8", "float32", per_token=False)
    better = with_error_feedback(nearest, weight, np.zeros((320, 320), np.float32))
    np.testing.assert_array_equal(better.codes, nearest.codes)


def test_the_errors_of_columns_are_carried_as_gptq_carries_them():
    """By the published algorithm, which works with the inverse of the moments, column by column."""
    weight, x = weight_and_inputs(8, 48, 200, 12)
    nearest = quantize(weight, "int8", "float32", per_token=False)
    moments = x.astype(np.float64).T @ x
    order = np.argsort(-np.diagonal(moments), kind="stable")
    damped = moments + DAMPING * np.diag(np.diagonal(moments))
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    left, codes = weight[:, order].astype(np.float64), np.empty(weight.shape)
    for k in range(48):
        codes[:, k] = np.clip(np.rint(left[:, k] / nearest.scales[:, 0]), -127, 127)
        error = (left[:, k] - codes[:, k] * nearest.scales[:, 0]) / upper[k, k]
        left[:, k:] -= np.outer(error, upper[k, k:])
    expected = np.empty(weight.shape)
    expected[:, order] = codes
    ours = with_error_feedback(nearest, weight, moments.astype(np.float32))
    assert (ours.codes == expected).mean() > 0.98  # ties fall to either side
