"""ONNX bodies of `QvRotary`, one for each target."""

import onnx

from plugins.onnx.function_body import function_from_body
from plugins.registry import ROTARY

# positions[axis_of] picks, for each frequency, the position axis it follows: [D/2, T].
_ANGLES = """
    axis_positions = Gather<axis = 0>(positions, axis_of)
    axis_positions_by_token = Transpose<perm = [1, 0]>(axis_positions)
    float_positions = Cast<to = 1>(axis_positions_by_token)
    angles = Mul(float_positions, frequencies)
    cos = Cos(angles)
    sin = Sin(angles)
"""


def portable() -> onnx.FunctionProto:
    """Standard ops only: float32 angles and products, two halves rotated and joined."""
    return function_from_body(
        ROTARY,
        _ANGLES
        + """
    heads_axis = Constant<value_ints = [1]>()
    cos_of_heads = Unsqueeze(cos, heads_axis)
    sin_of_heads = Unsqueeze(sin, heads_axis)
"""
        + _rotate_halves("q")
        + _rotate_halves("k"),
    )


def _rotate_halves(x: str) -> str:
    return f"""
    {x}_float = Cast<to = 1>({x})
    {x}_first, {x}_second = Split<axis = -1, num_outputs = 2>({x}_float)
    {x}_first_cos = Mul({x}_first, cos_of_heads)
    {x}_second_sin = Mul({x}_second, sin_of_heads)
    {x}_rotated_first = Sub({x}_first_cos, {x}_second_sin)
    {x}_second_cos = Mul({x}_second, cos_of_heads)
    {x}_first_sin = Mul({x}_first, sin_of_heads)
    {x}_rotated_second = Add({x}_second_cos, {x}_first_sin)
    {x}_rotated_float = Concat<axis = -1>({x}_rotated_first, {x}_rotated_second)
    rotated_{x} = CastLike({x}_rotated_float, {x})
"""


def onnxruntime_cuda() -> onnx.FunctionProto:
    """The body of `onnxruntime` in float32 whatever q and k are: its CUDA kernel wants sines in their dtype."""
    return function_from_body(
        ROTARY,
        _ANGLES
        + "    q_float = Cast<to = 1>(q)\n    k_float = Cast<to = 1>(k)\n"
        + _fused("q_float", "k_float", "rotated_q_float", "rotated_k_float")
        + "    rotated_q = CastLike(rotated_q_float, q)\n    rotated_k = CastLike(rotated_k_float, k)\n",
    )


def onnxruntime() -> onnx.FunctionProto:
    """The standard `RotaryEmbedding`, for which ONNX Runtime has one fused float32 kernel.

    Each token is a batch entry of sequence length 1, [T, H, D] -> [T, H, 1, D], so nothing is transposed. Sines and
    cosines stand outside: all layers compute the same ones, and common-subexpression elimination keeps one pair.
    """
    return function_from_body(ROTARY, _ANGLES + _fused("q", "k", "rotated_q", "rotated_k"))


def _fused(q: str, k: str, rotated_q: str, rotated_k: str) -> str:
    return f"""
    sequence_axis = Constant<value_ints = [1]>()
    head_sequence_axis = Constant<value_ints = [2]>()
    cos_cache = Unsqueeze(cos, sequence_axis)
    sin_cache = Unsqueeze(sin, sequence_axis)
    q_tokens = Unsqueeze({q}, head_sequence_axis)
    k_tokens = Unsqueeze({k}, head_sequence_axis)
    rotated_q_tokens = RotaryEmbedding(q_tokens, cos_cache, sin_cache)
    rotated_k_tokens = RotaryEmbedding(k_tokens, cos_cache, sin_cache)
    {rotated_q} = Squeeze(rotated_q_tokens, head_sequence_axis)
    {rotated_k} = Squeeze(rotated_k_tokens, head_sequence_axis)
"""


def tensorrt_rtx() -> onnx.FunctionProto:
    """The portable body: TensorRT fuses its element-wise steps into one kernel and keeps them in float32.

    Its native rotary layer wants sines and cosines in the dtype of `q`, and in bfloat16 those have 8 bits.
    """
    return portable()
