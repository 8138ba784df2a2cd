"""GPTQ's layout (AutoGPTQ, GPTQModel): w[n, k] = (q - z) s, codes of one output down a word's bits, lowest first.

`qweight` I32 [K bits / 32, N], `qzeros` I32 [G, N bits / 32], `scales` [G, N], and `g_idx` I32 [K], the group of each
input: where `desc_act` ordered the inputs by their weight, a group's are scattered. The first version stores zero
points less 1 (GPTQModel 7.7, `pack_original` and `convert_gptq_v2_to_v1`).
"""

from collections.abc import Mapping

import numpy as np

from export.errors import UserError
from export.quantization.layouts.common import FLOATS, Part, order_of
from export.quantization.linear import Array, QuantizedLinear
from export.quantization.packing import signed_codes, unsigned_codes
from export.quantization.scheme import LayerScheme

PARTS = ("qweight", "qzeros", "scales", "g_idx")


def expected_parts(scheme: LayerScheme, shape: tuple[int, int], num_groups: int) -> Mapping[str, Part]:
    """What a layer [N, K] has."""
    num_outputs, num_inputs = shape
    codes_a_word = 32 // scheme.bits
    return {
        "qweight": Part(("int32",), (-(-num_inputs // codes_a_word), num_outputs)),
        "qzeros": Part(("int32",), (num_groups, -(-num_outputs // codes_a_word))),
        "scales": Part(FLOATS, (num_groups, num_outputs)),
        "g_idx": Part(("int32", "int64"), (num_inputs,), is_optional=True),
    }


def linear_from_parts(
    values: Mapping[str, Array], scheme: LayerScheme, shape: tuple[int, int]
) -> QuantizedLinear:
    """Read a layer's values.

    Raises:
        UserError: groups of different sizes, or zero points that contradict `sym`.
    """
    middle = 1 << (scheme.bits - 1)
    scales = values["scales"].T.astype(np.float32)
    zeros = unsigned_codes(values["qzeros"], scheme.bits).T.astype(np.int16)
    zeros += np.int16(scheme.are_zeros_less_one) - np.int16(middle)
    if scheme.is_symmetric and zeros.any():
        raise UserError(
            f"its zero points are not {middle}, although sym is true: checkpoint_format is "
            f"{'gptq_v2' if scheme.are_zeros_less_one else 'gptq'}, or sym is false."
        )
    order = order_of(values.get("g_idx"), shape[1], scales.shape[1])
    codes = signed_codes(values["qweight"].T, scheme.bits)
    return QuantizedLinear(
        "int4" if scheme.bits == 4 else "int8",
        codes if order is None else codes[:, order],
        scales,
        zeros if zeros.any() else None,
        order,
    )
