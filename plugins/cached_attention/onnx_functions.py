"""ONNX bodies of `QvCachedAttention`, one for each target."""

import onnx

from plugins.onnx.function_body import MICROSOFT_DOMAIN, function_from_body
from plugins.onnx.native_layers import plain_attention
from plugins.registry import CACHED_ATTENTION, OP_DOMAIN


def portable() -> onnx.FunctionProto:
    """Standard ops only: scatter into the cache, then attention over its whole capacity under a boolean mask."""
    return function_from_body(
        CACHED_ATTENTION,
        """
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    zero_1d = Constant<value_ints = [0]>()
    one_1d = Constant<value_ints = [1]>()
    rows_axes = Constant<value_ints = [1, 3]>()
    last_axes = Constant<value_ints = [1, 2, 3]>()
    k_by_head = Transpose<perm = [0, 2, 1, 3]>(k)
    v_by_head = Transpose<perm = [0, 2, 1, 3]>(v)
    write_index_64 = Cast<to = 7>(write_index)
    present_key = TensorScatter(past_key, k_by_head, write_index_64)
    present_value = TensorScatter(past_value, v_by_head, write_index_64)
    num_queries_1d = Shape<start = 1, end = 2>(q)
    num_queries = Squeeze(num_queries_1d, zero_1d)
    query = Range(zero, num_queries, one)
    capacity_1d = Shape<start = 2, end = 3>(past_key)
    capacity = Squeeze(capacity_1d, zero_1d)
    column = Range(zero, capacity, one)
    write_column = Unsqueeze(write_index_64, one_1d)
    row = Add(write_column, query)
    row_4d = Unsqueeze(row, rows_axes)
    is_causal = LessOrEqual(column, row_4d)
    kv_lengths_64 = Cast<to = 7>(kv_lengths)
    kv_lengths_4d = Unsqueeze(kv_lengths_64, last_axes)
    is_valid = Less(column, kv_lengths_4d)
    visible = And(is_causal, is_valid)
    q_float = Cast<to = 1>(q)
    key_float = Cast<to = 1>(present_key)
    value_float = Cast<to = 1>(present_value)
    q_by_head = Transpose<perm = [0, 2, 1, 3]>(q_float)
    attended_by_head = Attention(q_by_head, key_float, value_float, visible)
    attended_float = Transpose<perm = [0, 2, 1, 3]>(attended_by_head)
    attended = CastLike(attended_float, q)
""",
    )


def onnxruntime(num_heads: int, num_key_value_heads: int) -> onnx.FunctionProto:
    """The contrib `GroupQueryAttention`: flash on CPU, in place when past and present are one buffer.

    It reads and writes only the valid part of the cache, so a step costs the same at any capacity. It finds where to
    write from `kv_lengths` and S alone, which is `write_index` only if no row is padded past a non-empty cache, and
    it refuses several rows there: `engines.backends.onnxruntime` sends such calls row by row. float32 only on CPU.
    """
    return function_from_body(
        CACHED_ATTENTION,
        f"""
    one = Constant<value_int = 1>()
    rows = Constant<value_ints = [0, 0, -1]>()
    q_rows = Reshape(q, rows)
    k_rows = Reshape(k, rows)
    v_rows = Reshape(v, rows)
    kv_lengths_64 = Cast<to = 7>(kv_lengths)
    last_index_64 = Sub(kv_lengths_64, one)
    last_index = Cast<to = 6>(last_index_64)
    longest_64 = ReduceMax<keepdims = 0>(kv_lengths_64)
    longest = Cast<to = 6>(longest_64)
    attended_rows, present_key, present_value = {MICROSOFT_DOMAIN}.GroupQueryAttention<
        num_heads = {num_heads}, kv_num_heads = {num_key_value_heads}>(
        q_rows, k_rows, v_rows, past_key, past_value, last_index, longest)
    shape = Shape(q)
    attended = Reshape(attended_rows, shape)
""",
        extra_domains={MICROSOFT_DOMAIN: 1},
    )


def onnxruntime_cuda(num_heads: int, num_key_value_heads: int) -> onnx.FunctionProto:
    """`GroupQueryAttention` on an NVIDIA GPU: float16 and bfloat16, in place when past and present are one buffer.

    The kernel wants its sixth input in the host's memory, where a maximum of `kv_lengths` would have to be fetched in
    every step. The capacity, which the host knows, does as well: it only sizes the work, and what is valid is told by
    `kv_lengths`. The kernel then takes every call for one that goes on with a cache, so one row at a time where it has
    several tokens (`engines.backends.onnxruntime_cuda` sees to that).
    """
    return function_from_body(
        CACHED_ATTENTION,
        f"""
    one = Constant<value_int = 1>()
    rows = Constant<value_ints = [0, 0, -1]>()
    q_rows = Reshape(q, rows)
    k_rows = Reshape(k, rows)
    v_rows = Reshape(v, rows)
    kv_lengths_64 = Cast<to = 7>(kv_lengths)
    last_index_64 = Sub(kv_lengths_64, one)
    last_index = Cast<to = 6>(last_index_64)
    capacity_64 = Shape<start = 2, end = 3>(past_key)
    capacity = Cast<to = 6>(capacity_64)
    attended_rows, present_key, present_value = {MICROSOFT_DOMAIN}.GroupQueryAttention<
        num_heads = {num_heads}, kv_num_heads = {num_key_value_heads}>(
        q_rows, k_rows, v_rows, past_key, past_value, last_index, capacity)
    shape = Shape(q)
    attended = Reshape(attended_rows, shape)
""",
        extra_domains={MICROSOFT_DOMAIN: 1},
    )


def tensorrt_rtx(*, is_decomposable: bool = False) -> onnx.FunctionProto:
    """TensorRT's native cache update and fused attention; the cache stays the network's input and output.

    Causal at the lower right of `write_index + S` keys, not of `kv_lengths`: the layer counts from the last query of
    the call, padding included, and then a valid query sees keys up to its own in a ragged batch too. `kv_lengths` is
    never larger; the maximum only keeps it an input of the network. TensorRT refuses `query_lengths` and
    `update_lengths` with padded tensors.

    Args:
        is_decomposable: let TensorRT fall back to plain products, with scores of B * H * S * L, where it has no fused
            kernel: float32. Without it such a build fails. In other dtypes it would round the scores.
    """
    return function_from_body(
        CACHED_ATTENTION,
        f"""{_CACHE_UPDATE}
    num_queries_64 = Shape<start = 1, end = 2>(q)
    num_queries = Cast<to = 6>(num_queries_64)
    end = Add(write_indices, num_queries)
    valid = Cast<to = 6>(kv_lengths)
    num_keys = Max(end, valid)
    q_scaled = CastLike(q_scaled_float, q)
    q_by_head = Transpose<perm = [0, 2, 1, 3]>(q_scaled)
    attended_by_head = {OP_DOMAIN}.TRT_Attention<query_form = "padded_bhnd", kv_form = "padded_bhnd",
        causal_kind = "lower_right", TRT_decomposable = {int(is_decomposable)}>(
        q_by_head, present_key, present_value, , , num_keys)
    attended = Transpose<perm = [0, 2, 1, 3]>(attended_by_head)
""",
        extra_domains={OP_DOMAIN: 1},
    )


def tensorrt_rtx_folded(*, is_decomposable: bool = False) -> onnx.FunctionProto:
    """The same layers, with the G = H / K query heads of a KV head as further rows of one head, under a mask.

    One query is then G rows, for which TensorRT takes its tiled kernel in decode too: products are added in float32 at
    any capacity, and keys and values are read once for a group. The mask has B * S * G * L entries, and keys and
    values are copied in each layer, so a prefill needs more memory than `tensorrt_rtx` unless H is many times K.

    Args:
        is_decomposable: let TensorRT take the layer apart. With one KV head it must, and puts it together again as the
            same tiled kernel if G is at least 2; with G = 1 it rounds the scores instead.
    """
    attend = f"""
    q_computed = CastLike(q_folded, q)
    attended_folded = {OP_DOMAIN}.TRT_Attention<query_form = "padded_bhnd", kv_form = "padded_bhnd",
        causal_kind = "none", TRT_decomposable = {int(is_decomposable)}>(
        q_computed, present_key, present_value, visible)"""
    return _folded(attend)


def tensorrt_rtx_plain() -> onnx.FunctionProto:
    """Plain products and a softmax in float32, for head shapes without any fused kernel: scores of B * H * S * L."""
    attend = f"""
    keys = Cast<to = 1>(present_key)
    values = Cast<to = 1>(present_value)
    {plain_attention("q_folded", "keys", "values", "visible", "attended_float")}
    attended_folded = CastLike(attended_float, q)"""
    return _folded(attend)


def _folded(attend: str) -> onnx.FunctionProto:
    """Around `attend`, from `q_folded` and `visible` to `attended_folded`: row s * G + g is query s of head g."""
    return function_from_body(
        CACHED_ATTENTION,
        f"""{_CACHE_UPDATE}
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    zero_1d = Constant<value_ints = [0]>()
    one_1d = Constant<value_ints = [1]>()
    row_axes = Constant<value_ints = [1, 3]>()
    num_queries_1d = Shape<start = 1, end = 2>(q)
    num_heads_1d = Shape<start = 2, end = 3>(q)
    kv_heads_1d = Shape<start = 1, end = 2>(past_key)
    group_1d = Div(num_heads_1d, kv_heads_1d)
    num_rows_1d = Mul(num_queries_1d, group_1d)
    grouped_shape = Concat<axis = 0>(zero_1d, zero_1d, kv_heads_1d, group_1d, head_dim_1d)
    q_grouped = Reshape(q_scaled_float, grouped_shape)
    q_by_kv_head = Transpose<perm = [0, 2, 1, 3, 4]>(q_grouped)
    folded_shape = Concat<axis = 0>(zero_1d, zero_1d, num_rows_1d, head_dim_1d)
    q_folded = Reshape(q_by_kv_head, folded_shape)
    num_rows = Squeeze(num_rows_1d, zero_1d)
    row = Range(zero, num_rows, one)
    query_64 = Div(row, group_1d)
    query = Cast<to = 6>(query_64)
    write_column = Unsqueeze(write_indices, one_1d)
    own_column = Add(write_column, query)
    valid = Cast<to = 6>(kv_lengths)
    one_int32 = Cast<to = 6>(one)
    last = Sub(valid, one_int32)
    last_column = Unsqueeze(last, one_1d)
    last_visible = Min(own_column, last_column)
    last_visible_4d = Unsqueeze(last_visible, row_axes)
    capacity_1d = Shape<start = 2, end = 3>(past_key)
    capacity = Squeeze(capacity_1d, zero_1d)
    column_64 = Range(zero, capacity, one)
    column = Cast<to = 6>(column_64)
    visible = LessOrEqual(column, last_visible_4d)
    {attend}
    by_kv_head_shape = Concat<axis = 0>(zero_1d, zero_1d, num_queries_1d, group_1d, head_dim_1d)
    attended_by_kv_head = Reshape(attended_folded, by_kv_head_shape)
    attended_grouped = Transpose<perm = [0, 2, 1, 3, 4]>(attended_by_kv_head)
    q_shape = Shape(q)
    attended = Reshape(attended_grouped, q_shape)
""",
        extra_domains={OP_DOMAIN: 1},
    )


_CACHE_UPDATE = f"""
    k_by_head = Transpose<perm = [0, 2, 1, 3]>(k)
    v_by_head = Transpose<perm = [0, 2, 1, 3]>(v)
    write_indices = Cast<to = 6>(write_index)
    present_key = {OP_DOMAIN}.TRT_KVCacheUpdate<mode = "linear">(past_key, k_by_head, write_indices)
    present_value = {OP_DOMAIN}.TRT_KVCacheUpdate<mode = "linear">(past_value, v_by_head, write_indices)
    q_float = Cast<to = 1>(q)
    head_dim_1d = Shape<start = 3, end = 4>(q)
    head_dim = Cast<to = 1>(head_dim_1d)
    root = Sqrt(head_dim)
    q_scaled_float = Div(q_float, root)"""
"""Beside the cache, the queries with the scale that the native layer has not."""
