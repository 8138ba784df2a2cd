"""`QvQuantizedCacheAttention` as a torch op: a node in the graph being traced, or the reference."""

import torch
from torch import Tensor

from plugins.onnx.tracing import symbolic_call
from plugins.quantized_cache_attention import reference
from plugins.registry import QUANTIZED_CACHE_ATTENTION


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
) -> tuple[Tensor, ...]:
    """See `plugins.quantized_cache_attention.reference.quantized_cache_attention`."""
    caches = (past_key, past_value, past_key_scale, past_value_scale)
    inputs = (q, k, v, *caches, write_index, kv_lengths)
    if torch.compiler.is_exporting():
        return tuple(symbolic_call(QUANTIZED_CACHE_ATTENTION, inputs, like=(q, *caches)))
    return reference.quantized_cache_attention(*inputs, turns_a_tie=turns_a_tie)
