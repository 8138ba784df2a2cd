"""compressed-tensors' layouts: w[n, k] = (q - z) s, with signed codes.

Packed: `weight_packed` I32 [N, K bits / 32], a row's codes lowest bits first, each plus the middle;
`weight_zero_point` packed alike along N, I32 [N bits / 32, G]; `weight_shape` I64 [2]; `weight_g_idx` I32 [K] where
inputs were ordered. Else: `weight` I8 or F8_E4M3 [N, K], `weight_zero_point` I8. `weight_scale` [N, G], [N, 1] or [1];
`input_scale` [1] where inputs are rounded by a static one (compressed-tensors 0.20).
"""

from collections.abc import Mapping

import numpy as np

from export.errors import UserError
from export.quantization.layouts.common import FLOATS, Part, order_of
from export.quantization.linear import Array, QuantizedLinear
from export.quantization.packing import signed_codes
from export.quantization.scheme import LayerScheme

PARTS = (
    "weight_packed",
    "weight",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "input_scale",
    "input_zero_point",
)


def expected_parts(scheme: LayerScheme, shape: tuple[int, int], num_groups: int) -> Mapping[str, Part]:
    """What a layer [N, K] has."""
    num_outputs, num_inputs = shape
    codes_a_word = 32 // scheme.bits
    whole: tuple[tuple[int, ...], ...] = ((1,), (), (1, 1)) if scheme.is_scaled_whole else ()
    scales = (1,) if scheme.is_scaled_whole else (num_outputs, num_groups)
    rows: tuple[tuple[int, ...], ...] = whole or (((num_outputs,),) if num_groups == 1 else ())
    parts = {"weight_scale": Part(FLOATS, scales, other_shapes=rows)}
    if scheme.is_packed:
        parts["weight_packed"] = Part(("int32",), (num_outputs, -(-num_inputs // codes_a_word)))
        parts["weight_shape"] = Part(("int64", "int32"), (2,))
        parts["weight_g_idx"] = Part(("int32", "int64"), (num_inputs,), is_optional=True)
        zeros = Part(("int32",), (-(-num_outputs // codes_a_word), num_groups))
    else:
        parts["weight"] = Part(
            ("int8" if scheme.kind == "int" else "float8_e4m3fn",), (num_outputs, num_inputs)
        )
        zeros = Part(
            ("int8", *FLOATS, "float8_e4m3fn"), scales, is_optional=scheme.is_symmetric, other_shapes=rows
        )
    if not (scheme.is_symmetric and scheme.is_packed):
        parts["weight_zero_point"] = zeros
    if scheme.activations == "static":
        parts["input_scale"] = Part(FLOATS, (1,), other_shapes=((),))
        parts["input_zero_point"] = Part(
            ("int8", "float8_e4m3fn", *FLOATS), (1,), is_optional=True, other_shapes=((),)
        )
    return parts


def linear_from_parts(
    values: Mapping[str, Array], scheme: LayerScheme, shape: tuple[int, int]
) -> QuantizedLinear:
    """Read a layer's values.

    Raises:
        UserError: groups of different sizes, another shape than is stated, zero points where there must be none.
    """
    num_outputs, num_inputs = shape
    stated = values["weight_shape"].tolist() if "weight_shape" in values else list(shape)
    if stated != list(shape):
        raise UserError(f"weight_shape is {stated}, expected {list(shape)}.")
    scales = values["weight_scale"].astype(np.float32)
    scales = (
        np.broadcast_to(scales, (num_outputs, 1))
        if scheme.is_scaled_whole
        else scales.reshape(num_outputs, -1)
    )
    order = order_of(values.get("weight_g_idx"), num_inputs, scales.shape[1])
    if scheme.is_packed:
        codes = signed_codes(values["weight_packed"], scheme.bits)[:, :num_inputs]
    else:
        codes = values["weight"]
    zeros = _zeros(values, scheme, scales.shape)
    _refuse_shifted_inputs(values)
    activations = scheme.activations
    return QuantizedLinear(
        "fp8" if scheme.kind == "float" else "int4" if scheme.bits == 4 else "int8",
        codes if order is None else codes[:, order],
        scales,
        zeros,
        order,
        float(values["input_scale"].astype(np.float32).reshape(()))
        if activations == "static"
        else activations,
    )


def _zeros(values: Mapping[str, Array], scheme: LayerScheme, blocks: tuple[int, ...]) -> Array | None:
    """[N, G] int16; None where all are 0."""
    stored = values.get("weight_zero_point")
    if stored is None:
        return None
    if scheme.is_packed:
        zeros = signed_codes(stored.T, scheme.bits)[:, : blocks[0]].T.astype(np.int16)
    else:
        zeros = np.broadcast_to(stored.astype(np.int16).reshape(-1, blocks[1]), blocks)
    if not zeros.any():
        return None
    if scheme.is_symmetric or scheme.kind == "float":
        raise UserError("weight_zero_point is not 0, although symmetric is true.")
    return zeros


def _refuse_shifted_inputs(values: Mapping[str, Array]) -> None:
    zero = values.get("input_zero_point")
    if zero is not None and zero.astype(np.float32).any():
        raise UserError("input_zero_point is not 0, although symmetric is true.")
