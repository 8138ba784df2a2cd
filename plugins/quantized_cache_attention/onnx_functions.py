"""ONNX bodies of `QvQuantizedCacheAttention`, one for each target."""

from typing import Literal

import onnx
from onnx import TensorProto

from plugins.onnx.function_body import MICROSOFT_DOMAIN, function_from_body
from plugins.registry import QUANTIZED_CACHE_ATTENTION

Precision = Literal["int8", "fp8"]

CODES = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
_LARGEST = {"int8": 127.0, "fp8": 448.0}


def portable(precision: Precision) -> onnx.FunctionProto:
    """Standard ops only: codes scattered into the cache, then attention to all of what the codes mean, under a mask."""
    return function_from_body(
        QUANTIZED_CACHE_ATTENTION,
        f"""
    {_CONSTANTS}
    write_index_64 = Cast<to = 7>(write_index)
    kv_lengths_64 = Cast<to = 7>(kv_lengths)
    {_quantized("k", precision)}
    {_quantized("v", precision)}
    {_written("k_codes", "past_key", "present_key")}
    {_written("k_scale", "past_key_scale", "present_key_scale")}
    {_written("v_codes", "past_value", "present_value")}
    {_written("v_scale", "past_value_scale", "present_value_scale")}
    num_queries_1d = Shape<start = 1, end = 2>(q)
    num_queries = Squeeze(num_queries_1d, zero_1d)
    query = Range(zero, num_queries, one)
    capacity_1d = Shape<start = 2, end = 3>(past_key)
    capacity = Squeeze(capacity_1d, zero_1d)
    {_VISIBLE.format(end="capacity")}
    key_codes = Cast<to = 1>(present_key)
    key_float = Mul(key_codes, present_key_scale)
    value_codes = Cast<to = 1>(present_value)
    value_float = Mul(value_codes, present_value_scale)
    q_float = Cast<to = 1>(q)
    q_by_head = Transpose<perm = [0, 2, 1, 3]>(q_float)
    attended_by_head = Attention(q_by_head, key_float, value_float, visible)
    attended_float = Transpose<perm = [0, 2, 1, 3]>(attended_by_head)
    attended = CastLike(attended_float, q)
""",
    )


def onnxruntime(
    precision: Precision, num_heads: int, num_key_value_heads: int, head_dim: int
) -> onnx.FunctionProto:
    """In float32 on a CPU, over the valid part of the cache, in place when past and present are one buffer.

    A step multiplies by the codes as they are, the query heads of a KV head as rows of one product: scales are of a
    token, so they go to the scores, and to the weights of the values. Measured for 2B's heads at 1,500 tokens, one
    thread: 0.73 ms a layer, where the kernel for a float32 cache takes 0.67 and one over the widened codes 1.55.
    Several tokens take that kernel all the same, `GroupQueryAttention`, over the widened valid part: it needs no memory
    for scores. So its rules stand (`plugins.cached_attention.onnx_functions.onnxruntime`): the session splits rows.

    ONNX Runtime scatters no 8-bit floats: their cache is bytes here, written by arithmetic and read by a table.
    """
    group = num_heads // num_key_value_heads
    scale = head_dim**-0.5
    widened_key, widened_value = (
        _widened(precision, codes, name) for codes, name in (("key", "key_codes"), ("value", "value_codes"))
    )
    return function_from_body(
        QUANTIZED_CACHE_ATTENTION,
        f"""
    {_CONSTANTS}
    {_TABLES if precision == "fp8" else ""}
    two_1d = Constant<value_ints = [2]>()
    write_index_64 = Cast<to = 7>(write_index)
    kv_lengths_64 = Cast<to = 7>(kv_lengths)
    {_quantized("k", precision)}
    {_quantized("v", precision)}
    {_stored(precision, "k")}
    {_stored(precision, "v")}
    {_written("k_stored", "past_key", "present_key")}
    {_written("k_scale", "past_key_scale", "present_key_scale")}
    {_written("v_stored", "past_value", "present_value")}
    {_written("v_scale", "past_value_scale", "present_value_scale")}
    longest_1d = ReduceMax<keepdims = 1>(kv_lengths_64)
    longest_64 = Squeeze(longest_1d, zero_1d)
    key = Slice(present_key, zero_1d, longest_1d, two_1d)
    key_scale = Slice(present_key_scale, zero_1d, longest_1d, two_1d)
    value = Slice(present_value, zero_1d, longest_1d, two_1d)
    value_scale = Slice(present_value_scale, zero_1d, longest_1d, two_1d)
    {widened_key}
    {widened_value}
    num_queries_1d = Shape<start = 1, end = 2>(q)
    num_queries = Squeeze(num_queries_1d, zero_1d)
    is_step = Equal(num_queries, one)
    attended = If(is_step) <
        then_branch = step () => (float[B, S, H, D] attended_in_step) {{
            q_grouped_shape = Constant<value_ints = [0, {num_key_value_heads}, {group}, {head_dim}]>()
            q_rows = Reshape(q, q_grouped_shape)
            raw_scores = {MICROSOFT_DOMAIN}.FusedMatMul<transB = 1, alpha = {scale:.17g}>(q_rows, key_codes)
            scale_of_keys = Transpose<perm = [0, 1, 3, 2]>(key_scale)
            scores = Mul(raw_scores, scale_of_keys)
            query = Range(zero, one, one)
            {_VISIBLE.format(end="longest_64")}
            hidden = Constant<value_float = -3.0e38>()
            visible_scores = Where(visible, scores, hidden)
            weights = Softmax<axis = -1>(visible_scores)
            scale_of_values = Transpose<perm = [0, 1, 3, 2]>(value_scale)
            weights_of_codes = Mul(weights, scale_of_values)
            attended_grouped = MatMul(weights_of_codes, value_codes)
            q_shape = Shape(q)
            attended_in_step = Reshape(attended_grouped, q_shape)
        }},
        else_branch = several () => (float[B, S, H, D] attended_in_several) {{
            rows = Constant<value_ints = [0, 0, -1]>()
            q_rows_of_all = Reshape(q, rows)
            k_rounded = Mul(k_codes_float, k_scale)
            v_rounded = Mul(v_codes_float, v_scale)
            k_rows = Reshape(k_rounded, rows)
            v_rows = Reshape(v_rounded, rows)
            key_float = Mul(key_codes, key_scale)
            value_float = Mul(value_codes, value_scale)
            last_index_64 = Sub(kv_lengths_64, one)
            last_index = Cast<to = 6>(last_index_64)
            longest = Cast<to = 6>(longest_64)
            attended_rows, all_keys, all_values = {MICROSOFT_DOMAIN}.GroupQueryAttention<
                num_heads = {num_heads}, kv_num_heads = {num_key_value_heads}>(
                q_rows_of_all, k_rows, v_rows, key_float, value_float, last_index, longest)
            shape = Shape(q)
            attended_in_several = Reshape(attended_rows, shape)
        }}
    >
""",
        extra_domains={MICROSOFT_DOMAIN: 1},
    )


_CONSTANTS = """
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    zero_1d = Constant<value_ints = [0]>()
    one_1d = Constant<value_ints = [1]>()
    last_axis = Constant<value_ints = [3]>()
    smallest_maximum = Constant<value_float = 1.0e-6>()"""

_VISIBLE = """
            column = Range(zero, {end}, one)
            write_column = Unsqueeze(write_index_64, one_1d)
            row = Add(write_column, query)
            rows_axes = Constant<value_ints = [1, 3]>()
            row_4d = Unsqueeze(row, rows_axes)
            is_causal = LessOrEqual(column, row_4d)
            last_axes = Constant<value_ints = [1, 2, 3]>()
            kv_lengths_4d = Unsqueeze(kv_lengths_64, last_axes)
            is_valid = Less(column, kv_lengths_4d)
            visible = And(is_causal, is_valid)"""
"""[B, 1, S, end]: which positions of the cache a query sees."""


def _quantized(x: str, precision: Precision) -> str:
    """Codes [B, S, K, D] of keys or values, and scales [B, S, K, 1]."""
    return f"""
    {x}_float = Cast<to = 1>({x})
    {x}_sizes = Abs({x}_float)
    {x}_largest = ReduceMax({x}_sizes, last_axis)
    {x}_maximum = Max({x}_largest, smallest_maximum)
    {x}_largest_code = Constant<value_float = {_LARGEST[precision]}>()
    {x}_scale = Div({x}_maximum, {x}_largest_code)
    {x}_normal = Div({x}_float, {x}_scale)
    {x}_whole = {"Round" if precision == "int8" else "Identity"}({x}_normal)
    {x}_codes = Cast<to = {CODES[precision]}>({x}_whole)
    {x}_codes_float = Cast<to = 1>({x}_codes)"""


def _written(update: str, past: str, present: str) -> str:
    return f"""
    {update}_by_head = Transpose<perm = [0, 2, 1, 3]>({update})
    {present} = TensorScatter({past}, {update}_by_head, write_index_64)"""


def _stored(precision: Precision, x: str) -> str:
    """Codes as the cache holds them: as they are, or the byte of an 8-bit float.

    Of its size m * 2^e with m from 8 to 15, the byte is 8 * (e + 10) + m - 8, and below 2^-6 the multiple of 2^-9; both
    are size * factor + offset, by how many of the powers of two from 2^-6 to 2^8 it reaches. The sign is 128 more.
    """
    if precision == "int8":
        return f"{x}_stored = Identity({x}_codes)"
    return f"""
    {x}_size = Abs({x}_codes_float)
    {x}_size_column = Unsqueeze({x}_size, inner_axis)
    {x}_reaches = GreaterOrEqual({x}_size_column, powers)
    {x}_reached = Cast<to = 7>({x}_reaches)
    {x}_number = ReduceSum<keepdims = 0>({x}_reached, inner_axis)
    {x}_factor = Gather(factors, {x}_number)
    {x}_offset = Gather(offsets, {x}_number)
    {x}_product = Mul({x}_size, {x}_factor)
    {x}_byte = Add({x}_product, {x}_offset)
    {x}_is_negative = Less({x}_codes_float, no_value)
    {x}_negative = Cast<to = 1>({x}_is_negative)
    {x}_sign = Mul({x}_negative, sign_byte)
    {x}_signed = Add({x}_byte, {x}_sign)
    {x}_stored = Cast<to = 2>({x}_signed)"""


def _widened(precision: Precision, cache: str, name: str) -> str:
    if precision == "int8":
        return f"{name} = Cast<to = 1>({cache})"
    return f"""
    {cache}_index = Cast<to = 6>({cache})
    {name} = Gather(values_of_bytes, {cache}_index)"""


def _float8_value(byte: int) -> float:
    exponent, mantissa = byte >> 3 & 15, byte & 7
    size = mantissa / 512 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -size if byte & 128 else size


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:.9e}" for value in values)


_TABLES = f"""
    inner_axis = Constant<value_ints = [4]>()
    no_value = Constant<value_float = 0.0>()
    sign_byte = Constant<value_float = 128.0>()
    powers = Constant<value_floats = [{_listed([2.0**e for e in range(-6, 9)])}]>()
    factors = Constant<value_floats = [{_listed([512.0, *(2.0 ** (10 - e) for e in range(1, 16))])}]>()
    offsets = Constant<value_floats = [{_listed([0.0, *(8.0 * e - 8 for e in range(1, 16))])}]>()
    values_of_bytes = Constant<value_floats = [{_listed([_float8_value(byte) for byte in range(256)])}]>()"""
"""NaN, the bytes 127 and 255, are values beyond the largest here: no rounding under a scale of its own gives them."""
