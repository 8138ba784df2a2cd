"""Who computes `QvCachedAttention` here: the reference, or a node in the graph being traced?"""

import torch
from torch import Tensor

from plugins.cached_attention import reference
from plugins.onnx.tracing import symbolic_call
from plugins.registry import CACHED_ATTENTION


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    write_index: Tensor,
    kv_lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `plugins.cached_attention.reference.cached_attention`."""
    inputs = (q, k, v, past_key, past_value, write_index, kv_lengths)
    if torch.compiler.is_exporting():
        attended, present_key, present_value = symbolic_call(
            CACHED_ATTENTION, inputs, like=(q, past_key, past_value)
        )
        return attended, present_key, present_value
    return reference.cached_attention(*inputs)
