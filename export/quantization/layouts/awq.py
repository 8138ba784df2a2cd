"""AutoAWQ's layout "gemm": w[n, k] = (q - z) s, eight codes of one input in a word, in an order of its own.

`qweight` I32 [K, N / 8], `qzeros` I32 [G, N / 8], `scales` [G, N] (AutoAWQ 0.2.9, awq/modules/linear/gemm.py).
"""

from collections.abc import Mapping

import numpy as np

from export.quantization.layouts.common import FLOATS, Part
from export.quantization.linear import Array, QuantizedLinear
from export.quantization.packing import signed_codes
from export.quantization.scheme import LayerScheme

PARTS = ("qweight", "qzeros", "scales")

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word, lowest bits first, the first to the eighth of its columns lie."""


def expected_parts(scheme: LayerScheme, shape: tuple[int, int], num_groups: int) -> Mapping[str, Part]:
    """What a layer [N, K] has."""
    num_outputs, num_inputs = shape
    words = -(-num_outputs * scheme.bits // 32)
    return {
        "qweight": Part(("int32",), (num_inputs, words)),
        "qzeros": Part(("int32",), (num_groups, words)),
        "scales": Part(FLOATS, (num_groups, num_outputs)),
    }


def linear_from_parts(
    values: Mapping[str, Array], scheme: LayerScheme, shape: tuple[int, int]
) -> QuantizedLinear:
    """Read a layer's values."""
    num_outputs, _ = shape
    codes = _columns(signed_codes(values["qweight"], scheme.bits))[:, :num_outputs]
    zeros = _columns(signed_codes(values["qzeros"], scheme.bits))[:, :num_outputs].astype(np.int16)
    return QuantizedLinear(
        "int4", codes.T, values["scales"].T.astype(np.float32), zeros.T if zeros.any() else None
    )


def _columns(codes: Array) -> Array:
    """Codes [M, N] as they lie in words, in the order of the columns that they are."""
    words = codes.reshape(len(codes), -1, 8)
    columns: Array = words[..., _PLACES].reshape(codes.shape)
    return columns
