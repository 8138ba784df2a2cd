"""`QvPatchAttention` as an ahead-of-time TensorRT plugin, with the kernel's PTX inside the engine.

The same shape as `plugins.rotary.tensorrt_plugin`: describe, offer tactics, implement.
"""

# mypy: disable-error-code="untyped-decorator"
# No `from __future__ import annotations` here: TensorRT reads the annotations' values.

from functools import cache

from plugins.patch_attention.kernel import (
    Tile,
    kernel_constants,
    num_programs,
    qv_patch_attention,
    tiles,
)
from plugins.registry import OP_DOMAIN, PATCH_ATTENTION
from plugins.tensorrt.ptx import CompiledKernel, compile_to_ptx
from plugins.tensorrt.types import ELEMENT_BYTES, TRITON_ELEMENTS, constant_dim

PLUGIN_ID = f"{OP_DOMAIN}::{PATCH_ATTENTION.name}"


@cache
def compile_kernel(
    element: str, num_heads: int, head_dim: int, tile: Tile, compute_capability: int, driver_cuda: str
) -> CompiledKernel:
    """The PTX that goes into an engine; `element` is Triton's name of the dtype, "bf16", "fp16" or "fp32"."""
    x = f"*{element}"
    return compile_to_ptx(
        qv_patch_attention,
        types={
            "q_ptr": x,
            "k_ptr": x,
            "v_ptr": x,
            "cu_seqlens_ptr": "*i32",
            "segment_range_ptr": "*i32",
            "num_segments": "i32",
            "attended_ptr": x,
        },
        constants=kernel_constants(num_heads, head_dim, tile),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        compute_capability=compute_capability,
        driver_cuda=driver_cuda,
    )


def register(compute_capability: int, driver_cuda: str) -> None:
    """Register the plugin for engines of one architecture; `plugins.tensorrt.register` calls this once a process."""
    import tensorrt.plugin as trtp  # noqa: PLC0415  (TensorRT is optional)

    @trtp.register(PLUGIN_ID)
    def describe(
        q: trtp.TensorDesc,
        k: trtp.TensorDesc,
        v: trtp.TensorDesc,
        cu_seqlens: trtp.TensorDesc,
        segment_range: trtp.TensorDesc,
    ) -> trtp.TensorDesc:
        del k, v, cu_seqlens, segment_range
        return q.like()

    @trtp.autotune(PLUGIN_ID)
    def offer(
        q: trtp.TensorDesc,
        k: trtp.TensorDesc,
        v: trtp.TensorDesc,
        cu_seqlens: trtp.TensorDesc,
        segment_range: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        del k, v, cu_seqlens, segment_range, outputs
        head_dim = constant_dim(q, 2, "q [P, H, D]")
        return [
            trtp.AutoTuneCombination(
                f"{x}, {x}, {x}, INT32, INT32, {x}", "LINEAR", range(1, 1 + len(tiles(head_dim, bytes_)))
            )
            for x, bytes_ in (("FP32", 4), ("FP16|BF16", 2))
        ]

    @trtp.aot_impl(PLUGIN_ID)
    def implement(
        q: trtp.TensorDesc,
        k: trtp.TensorDesc,
        v: trtp.TensorDesc,
        cu_seqlens: trtp.TensorDesc,
        segment_range: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        del k, v, segment_range, outputs
        heads, head_dim = constant_dim(q, 1, "q [P, H, D]"), constant_dim(q, 2, "q [P, H, D]")
        element = TRITON_ELEMENTS[q.dtype.name]
        tile = tiles(head_dim, ELEMENT_BYTES[element])[tactic - 1]
        kernel = compile_kernel(element, heads, head_dim, tile, compute_capability, driver_cuda)
        num_segments = cu_seqlens.shape_expr[0] - 1
        launch = trtp.KernelLaunchParams(
            grid_x=num_programs(q.shape_expr[0], num_segments, kernel_constants(heads, head_dim, tile)),
            grid_y=heads,
            block_x=kernel.threads_per_block,
            shared_mem=kernel.shared_bytes,
        )
        scalars = trtp.SymIntExprs(1)
        scalars[0] = trtp.SymInt32(num_segments)
        return kernel.name, kernel.ptx, launch, scalars
