"""`QvRotary` as a torch op: a node in the graph being traced, the GPU's kernel, or the reference."""

import torch
from torch import Tensor

from plugins.dispatch import runs_kernel
from plugins.onnx.tracing import symbolic_call
from plugins.registry import ROTARY
from plugins.rotary import reference


def rotary(
    q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor, axis_of: Tensor
) -> tuple[Tensor, Tensor]:
    """See `plugins.rotary.reference.rotary_reference`."""
    if torch.compiler.is_exporting():
        rotated_q, rotated_k = symbolic_call(ROTARY, (q, k, positions, frequencies, axis_of), like=(q, k))
        return rotated_q, rotated_k
    if runs_kernel(q, k):
        rotated_q, rotated_k = torch.ops.qv.rotary(q, k, positions, frequencies, axis_of)
        return rotated_q, rotated_k
    return reference.rotary_reference(q, k, positions, frequencies, axis_of)


@torch.library.custom_op("qv::rotary", mutates_args=(), device_types="cuda")
def _rotary_on_gpu(
    q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor, axis_of: Tensor
) -> tuple[Tensor, Tensor]:
    from plugins.rotary import kernel  # noqa: PLC0415  (Triton is there where a GPU is)

    return kernel.launch(q, k, positions, frequencies, axis_of)


@_rotary_on_gpu.register_kernel("cpu")
def _rotary_on_cpu(
    q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor, axis_of: Tensor
) -> tuple[Tensor, Tensor]:
    return reference.rotary_reference(q, k, positions, frequencies, axis_of)


@_rotary_on_gpu.register_fake
def _rotary_shapes(
    q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor, axis_of: Tensor
) -> tuple[Tensor, Tensor]:
    del positions, frequencies, axis_of
    return q.new_empty(q.shape), k.new_empty(k.shape)
