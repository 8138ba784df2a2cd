"""Rounds a weight so that its product changes least, on inputs that were seen: GPTQ (arXiv 2210.17323).

The error of y = x w^T is that of the weight, seen by the inputs' second moments H = sum of x^T x: |E L|^2 for the
factor H = L L^T. Columns are rounded one after the other, each to the code nearest to what makes up for the errors that
are behind it. This is Babai's rounding to a near lattice point, which gives GPTQ's numbers without an inverse.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from export.quantization.linear import Array, QuantizedLinear
from export.quantization.round_to_nearest import nearest_codes

DAMPING = 0.03
"""Share of an input's own power that is added to it: so much do the inputs to come differ from those that were seen."""

_BLOCK = 128  # columns whose errors are carried to all others at once


def with_error_feedback(
    linear: QuantizedLinear, weight: npt.NDArray[np.float32], second_moments: npt.NDArray[np.float32]
) -> QuantizedLinear:
    """The same scales with better codes.

    Args:
        linear: a weight [N, K] by its nearest codes, symmetric, its columns in order.
        weight: what it was made of.
        second_moments: [K, K], of the product's input.
    """
    assert linear.zeros is None, linear
    assert linear.order is None, linear
    scales = np.repeat(linear.scales, linear.block, axis=1)
    factor, order = _factor(second_moments)
    codes = np.empty_like(linear.codes)
    error = np.zeros(weight.shape, np.float32)
    # The last of the order first: what is rounded sees the errors of those that are after it in the factor.
    for stop in range(len(order), 0, -_BLOCK):
        start = max(0, stop - _BLOCK)
        carried = error[:, order[stop:]] @ factor[stop:, start:stop]
        for place in range(stop - 1, start - 1, -1):
            column = order[place]
            behind = order[place + 1 : stop]
            carry = carried[:, place - start] + error[:, behind] @ factor[place + 1 : stop, place]
            wanted = (weight[:, column] + carry / factor[place, place]) / scales[:, column]
            codes[:, column] = nearest_codes(wanted, linear.precision)
            error[:, column] = weight[:, column] - codes[:, column].astype(np.float32) * scales[:, column]
    return replace(linear, codes=codes)


def _factor(second_moments: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
    """Lower triangular [K, K] and the inputs in its order, weakest first: the strongest are rounded while all others
    can still make up for them.
    """
    power = np.diagonal(second_moments).astype(np.float64)
    # An input that was never seen must not be divided by; its column is rounded to the nearest.
    power = np.maximum(power, max(power.mean() * 1e-6, 1e-30))
    order = np.argsort(power, kind="stable")
    # In units of each input's size the sum of powers is the number of inputs: as well conditioned as the damping.
    size = np.sqrt(power[order])
    normal: Array = second_moments[np.ix_(order, order)] / size / size[:, None]
    normal[np.diag_indices_from(normal)] = 1 + DAMPING
    factor: npt.NDArray[np.float32] = (np.linalg.cholesky(normal) * size[:, None]).astype(np.float32)
    return factor, order


def relative_error(
    linear: QuantizedLinear, weight: npt.NDArray[np.float32], second_moments: npt.NDArray[np.float32] | None
) -> float:
    """Squared error of the product beside its squared size, on the inputs that were seen; None: on any, all alike."""
    error = linear.dequantized() - weight
    return _power(error, second_moments) / max(_power(weight, second_moments), 1e-30)


def _power(weight: npt.NDArray[np.float32], second_moments: npt.NDArray[np.float32] | None) -> float:
    seen = weight if second_moments is None else weight @ second_moments
    return float(np.einsum("nk,nk->", seen, weight, dtype=np.float64))
