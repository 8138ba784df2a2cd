"""Quantizes a weight by itself: each value to the nearest code, scales by the least squared error."""

import numpy as np
import numpy.typing as npt

from export.dtypes import numpy_dtype
from export.quantization.linear import FP8, Array, Precision, QuantizedLinear

BLOCKS = (128, 64, 32, 16)
"""Inputs that share a scale of a 4-bit weight, in the order of preference: what ONNX Runtime and TensorRT both fuse."""

_LARGEST = {"int8": 127.0, "fp8": 448.0}
_SMALLEST_SCALE = 1e-12  # of a row of zeros: any will do that a float holds

# The scales that are tried for 4 bits, as shares of the one by which the largest value is the code 7. Below 1 the few
# largest values are cut to it, and all others are rounded more finely.
_SHARES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 0.65)

_ROWS_BYTES = 16 << 20  # of a piece that is worked on at once: it and its copies stay in a cache


def block_of(num_inputs: int) -> int | None:
    """The block of a 4-bit weight [N, num_inputs], one of several in each output; None: none divides it."""
    return next((block for block in BLOCKS if num_inputs % block == 0 and num_inputs > block), None)


def quantize(
    weight: npt.NDArray[np.float32], precision: Precision, scale_dtype: str, *, per_token: bool
) -> QuantizedLinear:
    """The nearest quantized weight: int4 in symmetric blocks, int8 and fp8 with one scale for each output.

    Args:
        weight: [N, K].
        precision: of the codes; "int4" needs a K that one of `BLOCKS` divides.
        scale_dtype: "float32", "float16" or "bfloat16": what the graph computes in. Codes are chosen for the scales as
            they are after their rounding to it.
        per_token: round the input too, each token by a scale of its own; not for int4.
    """
    assert not (per_token and precision == "int4")
    if precision == "int4":
        return _quantize_in_blocks(weight, scale_dtype)
    largest = np.abs(weight).max(axis=1, keepdims=True)
    scales = _rounded(np.maximum(largest / _LARGEST[precision], _SMALLEST_SCALE), scale_dtype)
    return QuantizedLinear(
        precision,
        nearest_codes(weight / scales, precision),
        scales,
        activations="per_token" if per_token else None,
    )


def input_scale(largest: float, precision: Precision, dtype: str) -> float:
    """Of inputs up to `largest`, the scale by which they are rounded to 8-bit codes, as a number of `dtype`."""
    return float(_rounded(np.array([max(largest / _LARGEST[precision], _SMALLEST_SCALE)]), dtype)[0])


def nearest_codes(normal: Array, precision: Precision) -> Array:
    """Values in units of their scale as the nearest codes, cut to the largest."""
    if precision == "int4":
        return np.clip(np.rint(normal), -8, 7).astype(np.int8)
    largest = _LARGEST[precision]
    cut = np.clip(normal, -largest, largest)
    return cut.astype(FP8) if precision == "fp8" else np.rint(cut).astype(np.int8)


def _quantize_in_blocks(weight: npt.NDArray[np.float32], scale_dtype: str) -> QuantizedLinear:
    num_outputs, num_inputs = weight.shape
    block = block_of(num_inputs)
    assert block is not None, weight.shape
    codes = np.empty((num_outputs, num_inputs), np.int8)
    scales = np.empty((num_outputs, num_inputs // block), np.float32)
    num_rows = max(1, _ROWS_BYTES // (4 * num_inputs))
    for start in range(0, num_outputs, num_rows):
        rows = slice(start, min(start + num_rows, num_outputs))
        blocks = weight[rows].reshape(-1, num_inputs // block, block)
        scales[rows] = best_scales(blocks, scale_dtype)
        codes[rows] = nearest_codes(blocks / scales[rows, :, None], "int4").reshape(-1, num_inputs)
    return QuantizedLinear("int4", codes, scales)


def best_scales(blocks: Array, scale_dtype: str) -> npt.NDArray[np.float32]:
    """Of each block the positive scale, of those tried, by which 4-bit codes have the least squared error.

    Args:
        blocks: [N, G, block] float32.
        scale_dtype: to which the scales are rounded before they are compared.

    Returns:
        [N, G] float32.
    """
    # -8 is a code and 8 is none: a block whose largest value is negative may have the finer scale for nothing.
    full = np.maximum(np.maximum(blocks.max(axis=-1) / 7, -blocks.min(axis=-1) / 8), _SMALLEST_SCALE)
    best, least = _rounded(full, scale_dtype), np.full(full.shape, np.inf, np.float32)
    for share in _SHARES:
        scales = _rounded(full * share, scale_dtype)
        normal = blocks / scales[..., None]
        normal -= np.clip(np.rint(normal), -8, 7)
        error = np.einsum("ngb,ngb->ng", normal, normal) * scales**2
        is_better = error < least
        best, least = np.where(is_better, scales, best), np.where(is_better, error, least)
    return best.astype(np.float32)


def _rounded(scales: Array, dtype: str) -> npt.NDArray[np.float32]:
    rounded: npt.NDArray[np.float32] = scales.astype(numpy_dtype(dtype)).astype(np.float32)
    return rounded
