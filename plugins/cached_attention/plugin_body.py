"""A call of `QvCachedAttention`, said with the two plugins of `tensorrt_plugin.py`.

The parser puts plugins in the place of nodes of the main graph only, so this body is to be put in the place of its
call (`plugins.onnx.inline`).
"""

import onnx

from plugins.onnx.function_body import function_from_body
from plugins.registry import (
    CACHED_ATTENTION,
    CACHED_ATTENTION_COMBINE,
    CACHED_ATTENTION_PARTIALS,
    OP_DOMAIN,
    PLUGIN_ATTRIBUTES,
)


def tensorrt_plugins() -> onnx.FunctionProto:
    """The cache is written by TensorRT's native layer, so that it stays the network's input and output, in place."""
    attributes = ", ".join(
        f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value}"
        for name, value in PLUGIN_ATTRIBUTES.items()
    )
    return function_from_body(
        CACHED_ATTENTION,
        f"""
    k_by_head = Transpose<perm = [0, 2, 1, 3]>(k)
    v_by_head = Transpose<perm = [0, 2, 1, 3]>(v)
    write_index_32 = Cast<to = 6>(write_index)
    kv_lengths_32 = Cast<to = 6>(kv_lengths)
    present_key = {OP_DOMAIN}.TRT_KVCacheUpdate<mode = "linear">(past_key, k_by_head, write_index_32)
    present_value = {OP_DOMAIN}.TRT_KVCacheUpdate<mode = "linear">(past_value, v_by_head, write_index_32)
    partials, log_sums = {OP_DOMAIN}.{CACHED_ATTENTION_PARTIALS.name}<{attributes}>(
        q, present_key, present_value, write_index_32, kv_lengths_32)
    attended = {OP_DOMAIN}.{CACHED_ATTENTION_COMBINE.name}<{attributes}>(q, partials, log_sums, kv_lengths_32)
""",
        extra_domains={OP_DOMAIN: 1},
    )
