"""`QvRotary` as an ahead-of-time TensorRT plugin, with the kernel's PTX inside the engine.

`register` describes the op to TensorRT's builder in the current process. TensorRT times the tactics on the GPU it
builds on and keeps one; the engine then needs neither Python nor a plugin library.
"""

# mypy: disable-error-code="untyped-decorator"
# No `from __future__ import annotations` here: TensorRT reads the annotations' values.

from functools import cache
from typing import Any

from plugins.registry import OP_DOMAIN, ROTARY
from plugins.rotary.kernel import TILES, Tile, kernel_constants, num_programs, qv_rotary
from plugins.tensorrt.ptx import CompiledKernel, compile_to_ptx
from plugins.tensorrt.types import TRITON_ELEMENTS, constant_dim

PLUGIN_ID = f"{OP_DOMAIN}::{ROTARY.name}"


@cache
def compile_kernel(
    element: str,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    tile: Tile,
    compute_capability: int,
    driver_cuda: str,
) -> CompiledKernel:
    """The PTX that goes into an engine; `element` is Triton's name of the dtype, "bf16", "fp16" or "fp32"."""
    x = f"*{element}"
    return compile_to_ptx(
        qv_rotary,
        types={
            "q_ptr": x,
            "k_ptr": x,
            "positions_ptr": "*i32",
            "frequencies_ptr": "*fp32",
            "axis_of_ptr": "*i32",
            "num_tokens": "i32",
            "rotated_q_ptr": x,
            "rotated_k_ptr": x,
        },
        constants=kernel_constants(num_heads, num_kv_heads, head_dim, tile),
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
        positions: trtp.TensorDesc,
        frequencies: trtp.TensorDesc,
        axis_of: trtp.TensorDesc,
    ) -> tuple[trtp.TensorDesc, trtp.TensorDesc]:
        del positions, frequencies, axis_of
        return q.like(), k.like()

    @trtp.autotune(PLUGIN_ID)
    def offer(
        q: trtp.TensorDesc,
        k: trtp.TensorDesc,
        positions: trtp.TensorDesc,
        frequencies: trtp.TensorDesc,
        axis_of: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        del q, k, positions, frequencies, axis_of, outputs
        x = "FP32|FP16|BF16"
        return [
            trtp.AutoTuneCombination(
                f"{x}, {x}, INT32, FP32, INT32, {x}, {x}", "LINEAR", range(1, 1 + len(TILES))
            )
        ]

    @trtp.aot_impl(PLUGIN_ID)
    def implement(
        q: trtp.TensorDesc,
        k: trtp.TensorDesc,
        positions: trtp.TensorDesc,
        frequencies: trtp.TensorDesc,
        axis_of: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        del positions, frequencies, axis_of, outputs
        tile = TILES[tactic - 1]
        heads, kv_heads = constant_dim(q, 1, "q [T, H, D]"), constant_dim(k, 1, "k [T, K, D]")
        head_dim = constant_dim(q, 2, "q [T, H, D]")
        element = TRITON_ELEMENTS[q.dtype.name]
        kernel = compile_kernel(element, heads, kv_heads, head_dim, tile, compute_capability, driver_cuda)
        num_tokens: Any = q.shape_expr[0]
        launch = trtp.KernelLaunchParams(
            grid_x=num_programs(num_tokens, kernel_constants(heads, kv_heads, head_dim, tile), trtp.cdiv),
            block_x=kernel.threads_per_block,
            shared_mem=kernel.shared_bytes,
        )
        scalars = trtp.SymIntExprs(1)
        scalars[0] = trtp.SymInt32(num_tokens)
        return kernel.name, kernel.ptx, launch, scalars
