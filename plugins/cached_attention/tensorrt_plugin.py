"""The attention of `QvCachedAttention` as ahead-of-time TensorRT plugins, with PTX inside the engine.

Two, since such a plugin has one kernel and no workspace: partial results of the splits, and their combination. Neither
writes the cache: they read what TensorRT's native layer has written. The same shape as
`plugins.rotary.tensorrt_plugin`: describe, offer tactics, implement.
"""

# mypy: disable-error-code="untyped-decorator"
# No `from __future__ import annotations` here: TensorRT reads the annotations' values.

from functools import cache
from typing import Any

from plugins.cached_attention.kernel import (
    COMBINE_WARPS,
    Tile,
    combine_constants,
    kernel_constants,
    num_splits,
    partials_grid,
    qv_cached_attention_combine,
    qv_cached_attention_partials,
    tiles,
)
from plugins.cached_attention.limits import MAX_CAPACITY
from plugins.registry import CACHED_ATTENTION_COMBINE, CACHED_ATTENTION_PARTIALS, OP_DOMAIN
from plugins.tensorrt.ptx import CompiledKernel, compile_to_ptx
from plugins.tensorrt.types import ELEMENT_BYTES, TRITON_ELEMENTS, constant_dim

PLUGIN_ID = f"{OP_DOMAIN}::{CACHED_ATTENTION_PARTIALS.name}"
COMBINE_PLUGIN_ID = f"{OP_DOMAIN}::{CACHED_ATTENTION_COMBINE.name}"

_Q, _CACHE = "q [B, S, H, D]", "the cache [B, K, L, D]"


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
    """The first kernel's PTX; `element` is Triton's name of the dtype, "bf16", "fp16" or "fp32"."""
    x = f"*{element}"
    return compile_to_ptx(
        qv_cached_attention_partials,
        types={
            "q_ptr": x,
            "key_ptr": x,
            "value_ptr": x,
            "write_index_ptr": "*i32",
            "kv_lengths_ptr": "*i32",
            "num_queries": "i32",
            "capacity": "i32",
            "num_splits": "i32",
            "partials_ptr": "*fp32",
            "log_sums_ptr": "*fp32",
        },
        constants=kernel_constants(num_heads, num_kv_heads, head_dim, tile),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        compute_capability=compute_capability,
        driver_cuda=driver_cuda,
    )


@cache
def compile_combine(
    element: str, num_heads: int, head_dim: int, compute_capability: int, driver_cuda: str
) -> CompiledKernel:
    """The second kernel's PTX."""
    x = f"*{element}"
    return compile_to_ptx(
        qv_cached_attention_combine,
        types={
            "q_ptr": x,
            "partials_ptr": "*fp32",
            "log_sums_ptr": "*fp32",
            "kv_lengths_ptr": "*i32",
            "num_queries": "i32",
            "num_splits": "i32",
            "attended_ptr": x,
        },
        constants=combine_constants(num_heads, head_dim),
        num_warps=COMBINE_WARPS,
        num_stages=2,
        compute_capability=compute_capability,
        driver_cuda=driver_cuda,
    )


def capacity_of(cache_description: Any) -> int:
    """L, a constant of the network.

    Raises:
        ValueError: it is dynamic, or more than the kernel computes.
    """
    capacity = constant_dim(cache_description, 2, _CACHE)
    if capacity > MAX_CAPACITY:
        raise ValueError(f"the cache has {capacity:,} tokens, the kernel reads {MAX_CAPACITY:,} at most")
    return capacity


def register(compute_capability: int, driver_cuda: str) -> None:
    """Register both for engines of one architecture; `plugins.tensorrt.register` calls this once a process."""
    _register_partials(compute_capability, driver_cuda)
    _register_combine(compute_capability, driver_cuda)


def _register_partials(compute_capability: int, driver_cuda: str) -> None:
    import tensorrt  # noqa: PLC0415  (TensorRT is optional)
    import tensorrt.plugin as trtp  # noqa: PLC0415

    @trtp.register(PLUGIN_ID)
    def describe(
        q: trtp.TensorDesc,
        key: trtp.TensorDesc,
        value: trtp.TensorDesc,
        write_index: trtp.TensorDesc,
        kv_lengths: trtp.TensorDesc,
    ) -> tuple[trtp.TensorDesc, trtp.TensorDesc]:
        del key, value, write_index, kv_lengths
        sequences, queries, heads, head_dim = (q.shape_expr[axis] for axis in range(4))
        shape = (sequences, queries, heads, num_splits(queries))
        return (
            trtp.from_shape_expr((*shape, head_dim), tensorrt.float32),
            trtp.from_shape_expr(shape, tensorrt.float32),
        )

    @trtp.autotune(PLUGIN_ID)
    def offer(
        q: trtp.TensorDesc,
        key: trtp.TensorDesc,
        value: trtp.TensorDesc,
        write_index: trtp.TensorDesc,
        kv_lengths: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc, trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        del q, key, value, write_index, kv_lengths, outputs
        return [
            trtp.AutoTuneCombination(
                f"{x}, {x}, {x}, INT32, INT32, FP32, FP32", "LINEAR", range(1, 1 + len(tiles(element_bytes)))
            )
            for x, element_bytes in (("FP32", 4), ("FP16|BF16", 2))
        ]

    @trtp.aot_impl(PLUGIN_ID)
    def implement(
        q: trtp.TensorDesc,
        key: trtp.TensorDesc,
        value: trtp.TensorDesc,
        write_index: trtp.TensorDesc,
        kv_lengths: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc, trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        del value, write_index, kv_lengths, outputs
        heads, head_dim = constant_dim(q, 2, _Q), constant_dim(q, 3, _Q)
        kv_heads, capacity = constant_dim(key, 1, _CACHE), capacity_of(key)
        element = TRITON_ELEMENTS[q.dtype.name]
        tile = tiles(ELEMENT_BYTES[element])[tactic - 1]
        kernel = compile_kernel(element, heads, kv_heads, head_dim, tile, compute_capability, driver_cuda)
        sequences, queries = q.shape_expr[0], q.shape_expr[1]
        grid = partials_grid(sequences, queries, heads, kv_heads, tile)
        launch = trtp.KernelLaunchParams(
            grid_x=grid[0],
            grid_y=grid[1],
            grid_z=grid[2],
            block_x=kernel.threads_per_block,
            shared_mem=kernel.shared_bytes,
        )
        scalars = trtp.SymIntExprs(3)
        for i, size in enumerate((queries, capacity, num_splits(queries))):
            scalars[i] = trtp.SymInt32(size)
        return kernel.name, kernel.ptx, launch, scalars


def _register_combine(compute_capability: int, driver_cuda: str) -> None:
    import tensorrt.plugin as trtp  # noqa: PLC0415  (TensorRT is optional)

    @trtp.register(COMBINE_PLUGIN_ID)
    def describe(
        q: trtp.TensorDesc,
        partials: trtp.TensorDesc,
        log_sums: trtp.TensorDesc,
        kv_lengths: trtp.TensorDesc,
    ) -> trtp.TensorDesc:
        del partials, log_sums, kv_lengths
        return q.like()

    @trtp.autotune(COMBINE_PLUGIN_ID)
    def offer(
        q: trtp.TensorDesc,
        partials: trtp.TensorDesc,
        log_sums: trtp.TensorDesc,
        kv_lengths: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        del q, partials, log_sums, kv_lengths, outputs
        types = "FP32|FP16|BF16, FP32, FP32, INT32, FP32|FP16|BF16"
        return [trtp.AutoTuneCombination(types, "LINEAR", [1])]

    @trtp.aot_impl(COMBINE_PLUGIN_ID)
    def implement(
        q: trtp.TensorDesc,
        partials: trtp.TensorDesc,
        log_sums: trtp.TensorDesc,
        kv_lengths: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        del partials, kv_lengths, outputs, tactic
        heads, head_dim = constant_dim(q, 2, _Q), constant_dim(q, 3, _Q)
        element = TRITON_ELEMENTS[q.dtype.name]
        kernel = compile_combine(element, heads, head_dim, compute_capability, driver_cuda)
        sequences, queries = q.shape_expr[0], q.shape_expr[1]
        launch = trtp.KernelLaunchParams(
            grid_x=sequences * queries * heads,
            block_x=kernel.threads_per_block,
            shared_mem=kernel.shared_bytes,
        )
        scalars = trtp.SymIntExprs(2)
        scalars[0] = trtp.SymInt32(queries)
        scalars[1] = trtp.SymInt32(log_sums.shape_expr[3])
        return kernel.name, kernel.ptx, launch, scalars
