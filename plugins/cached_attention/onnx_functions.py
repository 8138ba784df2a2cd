"""Which ONNX body computes `QvCachedAttention` on each target?"""

import onnx

from plugins.onnx.function_body import MICROSOFT_DOMAIN, function_from_body
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


def tensorrt_rtx(*, is_decomposable: bool = False) -> onnx.FunctionProto:
    """TensorRT's native cache update and fused attention; the cache stays the network's input and output.

    Causal at the lower right of `write_index + S` keys, not of `kv_lengths`: the layer counts from the last query of
    the call, padding included, and then a valid query sees keys up to its own in a ragged batch too. `kv_lengths` is
    never larger; the maximum only keeps it an input of the network. TensorRT refuses `query_lengths` and
    `update_lengths` with padded tensors.

    Args:
        is_decomposable: let TensorRT fall back to plain products, with scores of B * H * S * L, where it has no fused
            kernel: float32. Without it such a build fails.
    """
    return function_from_body(
        CACHED_ATTENTION,
        f"""
    k_by_head = Transpose<perm = [0, 2, 1, 3]>(k)
    v_by_head = Transpose<perm = [0, 2, 1, 3]>(v)
    write_indices = Cast<to = 6>(write_index)
    present_key = {OP_DOMAIN}.TRT_KVCacheUpdate<mode = "linear">(past_key, k_by_head, write_indices)
    present_value = {OP_DOMAIN}.TRT_KVCacheUpdate<mode = "linear">(past_value, v_by_head, write_indices)
    num_queries_64 = Shape<start = 1, end = 2>(q)
    num_queries = Cast<to = 6>(num_queries_64)
    end = Add(write_indices, num_queries)
    valid = Cast<to = 6>(kv_lengths)
    num_keys = Max(end, valid)
    q_float = Cast<to = 1>(q)
    head_dim_1d = Shape<start = 3, end = 4>(q)
    head_dim = Cast<to = 1>(head_dim_1d)
    root = Sqrt(head_dim)
    q_scaled_float = Div(q_float, root)
    q_scaled = CastLike(q_scaled_float, q)
    q_by_head = Transpose<perm = [0, 2, 1, 3]>(q_scaled)
    attended_by_head = {OP_DOMAIN}.TRT_Attention<query_form = "padded_bhnd", kv_form = "padded_bhnd",
        causal_kind = "lower_right", TRT_decomposable = {int(is_decomposable)}>(
        q_by_head, present_key, present_value, , , num_keys)
    attended = Transpose<perm = [0, 2, 1, 3]>(attended_by_head)
""",
        extra_domains={OP_DOMAIN: 1},
    )
