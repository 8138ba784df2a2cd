"""Attention over a cache that is kept in 8 bits: the definition of `QvQuantizedCacheAttention`."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from plugins.cached_attention import reference as unquantized
from plugins.rounding import LARGEST_CODE, SMALLEST_MAXIMUM, nearest_codes

PRECISIONS: Mapping[torch.dtype, Literal["int8", "fp8"]] = {
    torch.int8: "int8",
    torch.float8_e4m3fn: "fp8",
}
"""By the cache's dtype."""


def quantized_cache_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    past_key_scale: Tensor,
    past_value_scale: Tensor,
    write_index: Tensor,
    kv_lengths: Tensor,
    *,
    turns_a_tie: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`plugins.cached_attention.reference.cached_attention`, with keys and values rounded when they are written.

    Each token's key, and its value, is codes under one scale for each KV head: the largest of its D channels becomes
    the largest code. Nothing is calibrated, a token is rounded alone, and so the same in prefill, in chunks and in
    decode. What is attended to are the codes times their scales, this call's own tokens included.

    Args:
        q: [B, S, H, D]; k, v: [B, S, K, D] with H a multiple of K, one float dtype.
        past_key, past_value: [B, K, L, D], int8 or float8_e4m3fn.
        past_key_scale, past_value_scale: [B, K, L, 1] float32.
        write_index, kv_lengths: [B] int, as without rounding.
        turns_a_tie: see `plugins.rounding.nearest_codes`.

    Returns:
        Attended values [B, S, H, D] in the dtype of `q`, and the updated cache: codes, then scales.
    """
    codes_and_scales = [quantize(x, past_key.dtype, turns_a_tie=turns_a_tie) for x in (k, v)]
    (key_codes, key_scales), (value_codes, value_scales) = codes_and_scales
    # As bytes: PyTorch scatters no 8-bit floats.
    new_key, new_value, key, value = (
        x.view(torch.int8) for x in (key_codes, value_codes, past_key, past_value)
    )
    present_key, present_value = (
        x.view(past_key.dtype) for x in unquantized.update_cache(new_key, new_value, key, value, write_index)
    )
    present_key_scale, present_value_scale = unquantized.update_cache(
        key_scales, value_scales, past_key_scale, past_value_scale, write_index
    )
    attended = unquantized.attend(
        q,
        dequantize(present_key, present_key_scale),
        dequantize(present_value, present_value_scale),
        write_index,
        kv_lengths,
    )
    return attended, present_key, present_value, present_key_scale, present_value_scale


def quantize(x: Tensor, dtype: torch.dtype, *, turns_a_tie: bool = False) -> tuple[Tensor, Tensor]:
    """Rows [..., D] as codes of a cache's dtype, and their scales [..., 1] in float32."""
    precision = PRECISIONS[dtype]
    wide = x.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_MAXIMUM) / LARGEST_CODE[precision]
    return nearest_codes(wide / scale, precision, turns_a_tie=turns_a_tie).to(dtype), scale


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """What codes [..., D] mean under their scales [..., 1], in float32."""
    return codes.float() * scale
