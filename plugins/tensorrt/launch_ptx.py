"""What an engine would launch for given tensors: the plugins' own PTX, grids and scalars, evaluated with numbers.

Tests and benchmarks launch it through `plugins.tensorrt.cuda_driver`: the plugin minus TensorRT's glue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plugins.cached_attention import kernel as cached_attention_kernel
from plugins.cached_attention import tensorrt_plugin as cached_attention_plugin
from plugins.patch_attention import kernel as patch_attention_kernel
from plugins.patch_attention import tensorrt_plugin as patch_attention_plugin
from plugins.rotary import kernel as rotary_kernel
from plugins.rotary import tensorrt_plugin as rotary_plugin
from plugins.tensorrt.cuda_driver import LoadedKernel, load_kernel
from plugins.tensorrt.ptx import CompiledKernel

ELEMENTS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Launch:
    """One call of a plugin's kernel. It keeps its tensors alive."""

    kernel: CompiledKernel
    grid: tuple[int, ...]
    inputs: tuple[Tensor, ...]
    scalars: tuple[int, ...]
    outputs: tuple[Tensor, ...]

    def load(self) -> LoadedKernel:
        return load_kernel(self.kernel)

    def run(self, loaded: LoadedKernel) -> tuple[Tensor, ...]:
        """Launch on PyTorch's current stream."""
        inputs, outputs = ([x.data_ptr() for x in tensors] for tensors in (self.inputs, self.outputs))
        stream = torch.cuda.current_stream().cuda_stream
        loaded.launch(self.grid, inputs, self.scalars, outputs, stream)
        return self.outputs


def rotary_launch(
    inputs: Sequence[Tensor], tile: rotary_kernel.Tile, compute_capability: int, driver_cuda: str
) -> Launch:
    """For q, k, positions, frequencies, axis_of; the outputs are poisoned with NaN."""
    q, k = inputs[:2]
    sizes = (q.shape[1], k.shape[1], q.shape[2])
    kernel = rotary_plugin.compile_kernel(ELEMENTS[q.dtype], *sizes, tile, compute_capability, driver_cuda)
    programs = rotary_kernel.num_programs(q.shape[0], rotary_kernel.kernel_constants(*sizes, tile))
    outputs = (torch.full_like(q, torch.nan), torch.full_like(k, torch.nan))
    return Launch(kernel, (programs,), tuple(x.contiguous() for x in inputs), (q.shape[0],), outputs)


def patch_attention_launch(
    inputs: Sequence[Tensor], tile: patch_attention_kernel.Tile, compute_capability: int, driver_cuda: str
) -> Launch:
    """For q, k, v, cu_seqlens, segment_range; the output is poisoned with NaN."""
    q, cu_seqlens = inputs[0], inputs[3]
    num_patches, num_heads, head_dim = q.shape
    num_segments = cu_seqlens.shape[0] - 1
    kernel = patch_attention_plugin.compile_kernel(
        ELEMENTS[q.dtype], num_heads, head_dim, tile, compute_capability, driver_cuda
    )
    constants = patch_attention_kernel.kernel_constants(num_heads, head_dim, tile)
    programs = patch_attention_kernel.num_programs(num_patches, num_segments, constants)
    return Launch(
        kernel,
        (programs, num_heads),
        tuple(x.contiguous() for x in inputs),
        (num_segments,),
        (torch.full_like(q, torch.nan),),
    )


def cached_attention_launches(
    inputs: Sequence[Tensor], tile: cached_attention_kernel.Tile, compute_capability: int, driver_cuda: str
) -> tuple[Launch, Launch]:
    """For q, key, value and int32 write_index, kv_lengths; the second launch reads what the first one writes."""
    q, key, kv_lengths = inputs[0], inputs[1], inputs[4]
    (sequences, queries, heads, head_dim), (_, kv_heads, capacity, _) = q.shape, key.shape
    splits = cached_attention_kernel.num_splits(queries)
    target = (compute_capability, driver_cuda)
    partials = q.new_full((sequences, queries, heads, splits, head_dim), torch.nan, dtype=torch.float32)
    log_sums = q.new_full((sequences, queries, heads, splits), torch.nan, dtype=torch.float32)
    first = Launch(
        cached_attention_plugin.compile_kernel(ELEMENTS[q.dtype], heads, kv_heads, head_dim, tile, *target),
        cached_attention_kernel.partials_grid(sequences, queries, heads, kv_heads, tile),
        tuple(x.contiguous() for x in inputs),
        (queries, capacity, splits),
        (partials, log_sums),
    )
    second = Launch(
        cached_attention_plugin.compile_combine(ELEMENTS[q.dtype], heads, head_dim, *target),
        (sequences * queries * heads,),
        (first.inputs[0], partials, log_sums, kv_lengths),
        (queries, splits),
        (torch.full_like(q, torch.nan),),
    )
    return first, second
