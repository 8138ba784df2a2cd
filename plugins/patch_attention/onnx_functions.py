"""Which ONNX body computes `QvPatchAttention` on each target?"""

import onnx

from plugins.function_body import MICROSOFT_DOMAIN, function_from_body
from plugins.registry import PATCH_ATTENTION


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
    no_segments = SequenceEmpty()
    attended_segments = Loop(num_segments, always, no_segments) <body = segment_body
        (int64 i, bool go_on, seq(float[1, M, C]) done) => (bool still_go_on, seq(float[1, M, C]) more_done) {{
        still_go_on = Identity(go_on)
        i_1d = Unsqueeze(i, zero)
        start = Gather(starts, i_1d)
        end = Gather(ends, i_1d)
        q_segment = Slice(q_batch, start, end, one)
        k_segment = Slice(k_batch, start, end, one)
        v_segment = Slice(v_batch, start, end, one)
        attended_segment = {MICROSOFT_DOMAIN}.MultiHeadAttention<num_heads = {num_heads}>(
            q_segment, k_segment, v_segment)
        more_done = SequenceInsert(done, attended_segment)
    }}>
    attended_batch = ConcatFromSequence<axis = 1>(attended_segments)
    shape = Shape(q)
    attended = Reshape(attended_batch, shape)
""",
        extra_domains={MICROSOFT_DOMAIN: 1},
    )
