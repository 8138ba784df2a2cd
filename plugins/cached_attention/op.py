"""`QvCachedAttention` as a torch op: a node in the graph being traced, the GPU's kernel, or the reference."""

import torch
from torch import Tensor

from plugins.cached_attention import reference
from plugins.cached_attention.limits import size_problems
from plugins.dispatch import runs_kernel
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
    """See `plugins.cached_attention.reference.cached_attention_reference`."""
    inputs = (q, k, v, past_key, past_value, write_index, kv_lengths)
    if torch.compiler.is_exporting():
        attended, present_key, present_value = symbolic_call(
            CACHED_ATTENTION, inputs, like=(q, past_key, past_value)
        )
        return attended, present_key, present_value
    if runs_kernel(q, k, v, past_key, past_value) and not size_problems(
        q.shape[2], k.shape[2], q.shape[3], past_key.shape[2]
    ):
        present_key, present_value = reference.update_cache(k, v, past_key, past_value, write_index)
        on_gpu: Tensor = torch.ops.qv.attend_to_cache(q, present_key, present_value, write_index, kv_lengths)
        return on_gpu, present_key, present_value
    return reference.cached_attention_reference(*inputs)


@torch.library.custom_op("qv::attend_to_cache", mutates_args=(), device_types="cuda")
def _attend_on_gpu(q: Tensor, key: Tensor, value: Tensor, write_index: Tensor, kv_lengths: Tensor) -> Tensor:
    from plugins.cached_attention import kernel  # noqa: PLC0415  (Triton is there where a GPU is)

    return kernel.launch(q, key, value, write_index, kv_lengths)


@_attend_on_gpu.register_kernel("cpu")
def _attend_on_cpu(q: Tensor, key: Tensor, value: Tensor, write_index: Tensor, kv_lengths: Tensor) -> Tensor:
    return reference.attend(q, key, value, write_index, kv_lengths)


@_attend_on_gpu.register_fake
def _attend_shape(q: Tensor, key: Tensor, value: Tensor, write_index: Tensor, kv_lengths: Tensor) -> Tensor:
    del key, value, write_index, kv_lengths
    return q.new_empty(q.shape)
