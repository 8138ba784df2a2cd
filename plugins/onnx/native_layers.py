"""What TensorRT's native attention and cache layers compute, in standard ONNX.

TensorRT's parser takes a node named `TRT_Attention`, `TRT_KVCacheUpdate` or `DistCollective` for its own layer,
whatever its domain. Everyone else runs the function of that name: it makes the file valid ONNX, and lets ONNX Runtime
compute what the native layer is documented to compute, so that the bodies which call it can be tested without a GPU.
"""

from typing import Literal

import onnx

from plugins.collective.onnx_functions import CUSTOM_DOMAIN, CUSTOM_OP
from plugins.onnx.function_body import function_from_body
from plugins.registry import OpSignature

NATIVE_ATTENTION = OpSignature(
    "TRT_Attention",
    inputs=("q", "k", "v", "mask", "query_lengths", "kv_lengths"),
    outputs=("attended",),
    attributes=dict.fromkeys(("query_form", "kv_form", "causal_kind"), "") | {"TRT_decomposable": 0},
)
KV_CACHE_UPDATE = OpSignature(
    "TRT_KVCacheUpdate",
    inputs=("past", "update", "write_indices"),
    outputs=("present",),
    attributes={"mode": "linear"},
)
DIST_COLLECTIVE = OpSignature(
    "DistCollective",
    inputs=("x",),
    outputs=("y",),
    attributes={"collective_operation": "", "reduce_op": "", "root": -1, "nb_rank": 1},
)


def dist_collective() -> onnx.FunctionProto:
    """What the ranks of the world sum or gather; by the custom op of `plugins.collective` for everyone but TensorRT."""
    return function_from_body(
        DIST_COLLECTIVE,
        f"""
    x_float = Cast<to = 1>(x)
    y_float = {CUSTOM_DOMAIN}.{CUSTOM_OP}<operation : string = @collective_operation, communicator = 0>(x_float)
    y = CastLike(y_float, x)
    """,
        {CUSTOM_DOMAIN: 1},
    )


def native_attention(hides_by: Literal["causal", "lengths", "mask"]) -> onnx.FunctionProto:
    """Padded attention: q [B, H, S, D], k and v [B, K, L, D]; no scaling inside.

    Args:
        hides_by: what hides keys from queries; a graph has calls of one kind only. "lengths": `kv_lengths` [B] are
            valid. "causal": of these, query S-1 sees all and each query before it one less, as
            `causal_kind = "lower_right"` says. "mask": `mask` [B, 1, S, L] is true where a query sees a key.
    """
    statements = (
        "visible = Identity(mask)" if hides_by == "mask" else _visible(is_causal=hides_by == "causal")
    )
    return function_from_body(
        NATIVE_ATTENTION,
        f"""
    {statements}
    q_float = Cast<to = 1>(q)
    k_float = Cast<to = 1>(k)
    v_float = Cast<to = 1>(v)
    attended_float = Attention<scale = 1.0>(q_float, k_float, v_float, visible)
    attended = CastLike(attended_float, q)
    """,
    )


def _visible(*, is_causal: bool) -> str:
    statements = """
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    zero_1d = Constant<value_ints = [0]>()
    last_axes = Constant<value_ints = [1, 2, 3]>()
    capacity_1d = Shape<start = 2, end = 3>(k)
    capacity = Squeeze(capacity_1d, zero_1d)
    column = Range(zero, capacity, one)
    kv_lengths_64 = Cast<to = 7>(kv_lengths)
    valid = Unsqueeze(kv_lengths_64, last_axes)
    """
    if is_causal:
        statements += """
    num_queries_1d = Shape<start = 2, end = 3>(q)
    num_queries = Squeeze(num_queries_1d, zero_1d)
    second_axis = Constant<value_ints = [1]>()
    query = Range(zero, num_queries, one)
    query_column = Unsqueeze(query, second_axis)
    first_row = Sub(valid, num_queries)
    row = Add(first_row, query_column)
    visible = LessOrEqual(column, row)
    """
    else:
        statements += """
    # ONNX Runtime wants a row of the mask for each query.
    ones = Constant<value_ints = [1, 1]>()
    num_queries_1d = Shape<start = 2, end = 3>(q)
    mask_shape = Concat<axis = 0>(ones, num_queries_1d, capacity_1d)
    is_valid = Less(column, valid)
    visible = Expand(is_valid, mask_shape)
    """
    return statements


def kv_cache_update() -> onnx.FunctionProto:
    """Past [B, K, L, D] with update [B, K, S, D] written at `write_indices` [B]."""
    return function_from_body(
        KV_CACHE_UPDATE,
        """
    indices = Cast<to = 7>(write_indices)
    present = TensorScatter(past, update, indices)
    """,
    )


def plain_attention(q: str, k: str, v: str, visible: str, attended: str) -> str:
    """Statements for scores, softmax and weighed values in standard ops, where no native layer has a kernel.

    Args:
        q: name of float32 queries [B, H, S, D] that carry the scale.
        k: name of float32 keys [B, H, L, D].
        v: name of float32 values [B, H, L, D].
        visible: name of a boolean mask, broadcast to [B, H, S, L], with a key for each query.
        attended: name for the result, float32 [B, H, S, D].
    """
    return f"""
    k_columns = Transpose<perm = [0, 1, 3, 2]>({k})
    scores = MatMul({q}, k_columns)
    hidden = Constant<value_float = -3.0e38>()
    masked_scores = Where({visible}, scores, hidden)
    weights = Softmax<axis = -1>(masked_scores)
    {attended} = MatMul(weights, {v})"""
