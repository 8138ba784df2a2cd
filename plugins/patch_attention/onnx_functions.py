"""ONNX bodies of `QvPatchAttention`, one for each target."""

import onnx

from plugins.onnx.function_body import MICROSOFT_DOMAIN, function_from_body
from plugins.onnx.native_layers import plain_attention
from plugins.registry import OP_DOMAIN, PATCH_ATTENTION


def portable() -> onnx.FunctionProto:
    """Standard ops only: one attention over all patches, masked to a patch's own segment.

    The mask has P * P entries: this body is the op's meaning for any ONNX runtime, not a body for many patches.
    Segment of patch p: how many of the inner offsets are <= p.
    """
    return function_from_body(
        PATCH_ATTENTION,
        """
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    first_axis = Constant<value_ints = [0]>()
    second_axis = Constant<value_ints = [1]>()
    num_patches_1d = Shape<start = 0, end = 1>(q)
    num_patches = Squeeze(num_patches_1d, first_axis)
    patch = Range(zero, num_patches, one)
    patch_column = Unsqueeze(patch, second_axis)
    offsets = Cast<to = 7>(cu_seqlens)
    is_past_offset = GreaterOrEqual(patch_column, offsets)
    is_past_offset_int = Cast<to = 7>(is_past_offset)
    segment = ReduceSum<keepdims = 0>(is_past_offset_int, second_axis)
    segment_row = Unsqueeze(segment, first_axis)
    segment_column = Unsqueeze(segment, second_axis)
    same_segment = Equal(segment_row, segment_column)
    q_float = Cast<to = 1>(q)
    k_float = Cast<to = 1>(k)
    v_float = Cast<to = 1>(v)
    q_by_head = Transpose<perm = [1, 0, 2]>(q_float)
    k_by_head = Transpose<perm = [1, 0, 2]>(k_float)
    v_by_head = Transpose<perm = [1, 0, 2]>(v_float)
    q_batch = Unsqueeze(q_by_head, first_axis)
    k_batch = Unsqueeze(k_by_head, first_axis)
    v_batch = Unsqueeze(v_by_head, first_axis)
    attended_batch = Attention(q_batch, k_batch, v_batch, same_segment)
    attended_by_head = Squeeze(attended_batch, first_axis)
    attended_float = Transpose<perm = [1, 0, 2]>(attended_by_head)
    attended = CastLike(attended_float, q)
""",
    )


def onnxruntime(num_heads: int) -> onnx.FunctionProto:
    """A loop over segments around the contrib `MultiHeadAttention`, which is flash attention on CPU.

    No memory grows with the square of anything: it holds one segment's output at a time beside the packed row.
    float32 only on CPU.

    Args:
        num_heads: H; the contrib op takes heads as an attribute and [1, p, H * D] tensors.
    """
    return _by_segment(
        num_heads,
        carried="seq(float[1, M, C])",
        nothing="SequenceEmpty()",
        append="SequenceInsert(done, attended_segment)",
        join="ConcatFromSequence<axis = 1>(attended_segments)",
    )


def onnxruntime_cuda(num_heads: int, dtype: str) -> onnx.FunctionProto:
    """The same on NVIDIA GPUs, where the contrib op is flash attention for head sizes that are multiples of 8.

    What is done is carried as one tensor, since ONNX has no sequences of bfloat16: it is copied once a segment.

    Args:
        num_heads: see `onnxruntime`.
        dtype: of q, k and v.
    """
    return _by_segment(
        num_heads,
        carried=f"{_type(dtype)}[1, M, C]",
        nothing="Slice(q_batch, zero, zero, one)",
        append="Concat<axis = 1>(done, attended_segment)",
        join="Identity(attended_segments)",
    )


def _type(dtype: str) -> str:
    """As ONNX's text form calls it."""
    return "float" if dtype == "float32" else dtype


def _by_segment(num_heads: int, *, carried: str, nothing: str, append: str, join: str) -> onnx.FunctionProto:
    """A loop that carries what is done: its type, how it begins, what an iteration adds, and how it ends."""
    more = carried.replace("M, C", "N, C")
    return function_from_body(
        PATCH_ATTENTION,
        f"""
    zero = Constant<value_ints = [0]>()
    one = Constant<value_ints = [1]>()
    to_the_end = Constant<value_ints = [9223372036854775807]>()
    before_last = Constant<value_ints = [-1]>()
    q_rows = Flatten<axis = 1>(q)
    k_rows = Flatten<axis = 1>(k)
    v_rows = Flatten<axis = 1>(v)
    q_batch = Unsqueeze(q_rows, zero)
    k_batch = Unsqueeze(k_rows, zero)
    v_batch = Unsqueeze(v_rows, zero)
    offsets = Cast<to = 7>(cu_seqlens)
    starts = Slice(offsets, zero, before_last)
    ends = Slice(offsets, one, to_the_end)
    num_segments = Size(starts)
    always = Constant<value = bool {{1}}>()
    no_segments = {nothing}
    attended_segments = Loop(num_segments, always, no_segments) <body = segment_body
        (int64 i, bool go_on, {carried} done) => (bool still_go_on, {more} more_done) {{
        still_go_on = Identity(go_on)
        i_1d = Unsqueeze(i, zero)
        start = Gather(starts, i_1d)
        end = Gather(ends, i_1d)
        q_segment = Slice(q_batch, start, end, one)
        k_segment = Slice(k_batch, start, end, one)
        v_segment = Slice(v_batch, start, end, one)
        attended_segment = {MICROSOFT_DOMAIN}.MultiHeadAttention<num_heads = {num_heads}>(
            q_segment, k_segment, v_segment)
        more_done = {append}
    }}>
    attended_batch = {join}
    shape = Shape(q)
    attended = Reshape(attended_batch, shape)
""",
        extra_domains={MICROSOFT_DOMAIN: 1},
    )


def tensorrt_rtx(*, is_decomposable: bool = False) -> onnx.FunctionProto:
    """TensorRT's native fused attention over segments padded to the longest: N * M rows, no square of anything.

    Row (n, m) of the padded batch is patch cu_seqlens[n] + m, or, past the segment's end, its last patch again;
    `kv_lengths` hides those as keys, and as queries nobody reads them. The way back is a gather too: scatter the
    padded rows' numbers to their patches, extra ones to slot P, then fetch.

    Limit: q, k, v and the result have N * M * H * D elements each, below 2^31: 1.6 million padded rows of 16 x 80.
    Segments of very different length waste most of that; encode those in separate calls.

    Args:
        is_decomposable: let TensorRT fall back to plain products, with scores of N * H * M * M, where it has no fused
            kernel: float32. Without it such a build fails, rather than to need that memory by surprise.
    """
    attend = f"""
    attended_padded = {OP_DOMAIN}.TRT_Attention<query_form = "padded_bhnd", kv_form = "padded_bhnd",
        causal_kind = "none", TRT_decomposable = {int(is_decomposable)}>(
        q_padded, k_padded, v_padded, , , lengths)"""
    return _padded(attend)


def tensorrt_rtx_plain() -> onnx.FunctionProto:
    """Plain products and a softmax in float32, for head shapes without any fused kernel: scores of N * H * M * M."""
    attend = f"""
    key_axes = Constant<value_ints = [1, 2]>()
    visible = Unsqueeze(is_patch, key_axes)
    queries = Cast<to = 1>(q_padded)
    keys = Cast<to = 1>(k_padded)
    values = Cast<to = 1>(v_padded)
    {plain_attention("queries", "keys", "values", "visible", "attended_float")}
    attended_padded = CastLike(attended_float, q)"""
    return _padded(attend)


def _padded(attend: str) -> onnx.FunctionProto:
    """Around `attend`, from `q_padded`, `k_padded`, `v_padded`, `lengths` to `attended_padded`."""
    return function_from_body(
        PATCH_ATTENTION,
        f"""
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    zero_1d = Constant<value_ints = [0]>()
    one_1d = Constant<value_ints = [1]>()
    minus_one_1d = Constant<value_ints = [-1]>()
    to_the_end = Constant<value_ints = [9223372036854775807]>()
    starts = Slice(cu_seqlens, zero_1d, minus_one_1d)
    ends = Slice(cu_seqlens, one_1d, to_the_end)
    lengths = Sub(ends, starts)
    starts_column = Unsqueeze(starts, one_1d)
    ends_column = Unsqueeze(ends, one_1d)
    patch = Add(starts_column, segment_range)
    is_patch = Less(patch, ends_column)
    one_int32 = Cast<to = 6>(one)
    last_patch = Sub(ends_column, one_int32)
    patch_to_read = Min(patch, last_patch)
    q_float = Cast<to = 1>(q)
    head_dim_1d = Shape<start = 2, end = 3>(q)
    head_dim = Cast<to = 1>(head_dim_1d)
    root = Sqrt(head_dim)
    q_scaled_float = Div(q_float, root)
    q_scaled = CastLike(q_scaled_float, q)
    q_rows = Gather<axis = 0>(q_scaled, patch_to_read)
    k_rows = Gather<axis = 0>(k, patch_to_read)
    v_rows = Gather<axis = 0>(v, patch_to_read)
    q_padded = Transpose<perm = [0, 2, 1, 3]>(q_rows)
    k_padded = Transpose<perm = [0, 2, 1, 3]>(k_rows)
    v_padded = Transpose<perm = [0, 2, 1, 3]>(v_rows)
    {attend}
    attended_by_segment = Transpose<perm = [0, 2, 1, 3]>(attended_padded)
    heads_and_channels = Shape<start = 1>(q)
    rows_shape = Concat<axis = 0>(minus_one_1d, heads_and_channels)
    attended_rows = Reshape(attended_by_segment, rows_shape)
    num_patches_1d = Shape<start = 0, end = 1>(q)
    num_patches = Cast<to = 6>(num_patches_1d)
    slot = Where(is_patch, patch, num_patches)
    slot_64 = Cast<to = 7>(slot)
    slot_row = Reshape(slot_64, minus_one_1d)
    slot_column = Unsqueeze(slot_row, one_1d)
    num_rows = Size(slot_row)
    row = Range(zero, num_rows, one)
    num_slots = Add(num_patches_1d, one_1d)
    no_rows = Expand(zero_1d, num_slots)
    row_of_slot = ScatterND(no_rows, slot_column, row)
    row_of_patch = Slice(row_of_slot, zero_1d, num_patches_1d)
    attended = Gather<axis = 0>(attended_rows, row_of_patch)
""",
        extra_domains={OP_DOMAIN: 1},
    )
