"""`QvPatchAttention` as a torch op: a node in the graph being traced, the GPU's kernel, or the reference."""

import torch
from torch import Tensor

from plugins.dispatch import runs_kernel
from plugins.onnx.tracing import symbolic_call
from plugins.patch_attention import reference
from plugins.registry import PATCH_ATTENTION


def patch_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, segment_range: Tensor) -> Tensor:
    """See `plugins.patch_attention.reference.patch_attention_reference`."""
    if torch.compiler.is_exporting():
        (attended,) = symbolic_call(PATCH_ATTENTION, (q, k, v, cu_seqlens, segment_range), like=(q,))
        return attended
    if runs_kernel(q, k, v):
        on_gpu: Tensor = torch.ops.qv.patch_attention(q, k, v, cu_seqlens, segment_range)
        return on_gpu
    return reference.patch_attention_reference(q, k, v, cu_seqlens, segment_range)


@torch.library.custom_op("qv::patch_attention", mutates_args=(), device_types="cuda")
def _patch_attention_on_gpu(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, segment_range: Tensor
) -> Tensor:
    from plugins.patch_attention import kernel  # noqa: PLC0415  (Triton is there where a GPU is)

    return kernel.launch(q, k, v, cu_seqlens, segment_range)


@_patch_attention_on_gpu.register_kernel("cpu")
def _patch_attention_on_cpu(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, segment_range: Tensor
) -> Tensor:
    return reference.patch_attention_reference(q, k, v, cu_seqlens, segment_range)


@_patch_attention_on_gpu.register_fake
def _patch_attention_shape(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, segment_range: Tensor
) -> Tensor:
    del k, v, cu_seqlens, segment_range
    return q.new_empty(q.shape)
