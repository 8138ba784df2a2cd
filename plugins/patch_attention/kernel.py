"""`QvPatchAttention` on a GPU: flash attention over a packed row, in Triton.

A program attends `BLOCK_QUERIES` patches of one segment and one head to that whole segment, one block of keys at a
time, with a running maximum and sum (FlashAttention-2, arXiv 2307.08691, algorithm 1). Two things are our own:

- Which segment? `cu_seqlens` is known on the GPU only, and a launch cannot read it. Segment i starts at program
  cu_seqlens[i] // BLOCK_QUERIES + i. That leaves each segment enough programs, and none but one a segment idle:
  P // BLOCK_QUERIES + N programs, from shapes alone. Example: segments of 4, 8 and 5 patches, blocks of 4: starts
  0, 2, 5 of 17 // 4 + 3 = 7 programs; programs 1 and 4 find nothing to do.
- Head sizes that are no power of two are split in two, D = 80 into 64 + 16, so that no product is padded to 128.
"""

# mypy: disable-error-code="no-untyped-call,no-untyped-def,untyped-decorator"
# A Triton kernel is compiled from its text; its parameters have no Python types.

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _load_rows(x_ptr, row, is_row, column, ROW_STRIDE: tl.constexpr, WIDTH: tl.constexpr,
               MASK_ROWS: tl.constexpr, MASK_COLUMNS: tl.constexpr):  # fmt: skip
    """Rows of a matrix, zero where masked; a mask costs registers, so only where there is something to hide."""
    pointers = x_ptr + row.to(tl.int64)[:, None] * ROW_STRIDE + column[None, :]
    if MASK_ROWS and MASK_COLUMNS:
        x = tl.load(pointers, mask=is_row[:, None] & (column < WIDTH)[None, :], other=0.0)
    elif MASK_ROWS:
        x = tl.load(pointers, mask=is_row[:, None], other=0.0)
    elif MASK_COLUMNS:
        x = tl.load(pointers, mask=(column < WIDTH)[None, :], other=0.0)
    else:
        x = tl.load(pointers)
    return x


@triton.jit
def _attend_block(
    q_main, q_rest, k_ptr, v_ptr, first_key, end_key, scale, row_max, row_sum, out_main, out_rest,
    ROW_STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    BLOCK_KEYS: tl.constexpr, PRECISION: tl.constexpr, MASK_KEYS: tl.constexpr,
):  # fmt: skip
    """One block of keys: scores, running softmax in base 2, weighted values."""
    MASK_REST: tl.constexpr = HEAD_DIM < MAIN + REST
    key = first_key + tl.arange(0, BLOCK_KEYS)
    is_key = key < end_key
    main = tl.arange(0, MAIN)
    rest = MAIN + tl.arange(0, REST)
    k_main = _load_rows(k_ptr, key, is_key, main, ROW_STRIDE, HEAD_DIM, MASK_KEYS, False)
    scores = tl.dot(q_main, tl.trans(k_main), input_precision=PRECISION)
    if REST > 1:
        k_rest = _load_rows(k_ptr, key, is_key, rest, ROW_STRIDE, HEAD_DIM, MASK_KEYS, MASK_REST)
        scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision=PRECISION)
    scores = scores * scale
    if MASK_KEYS:
        scores = tl.where(is_key[None, :], scores, float("-inf"))

    new_max = tl.maximum(row_max, tl.max(scores, 1))
    shrink = tl.exp2(row_max - new_max)
    weights = tl.exp2(scores - new_max[:, None])
    row_sum = row_sum * shrink + tl.sum(weights, 1)

    v_main = _load_rows(v_ptr, key, is_key, main, ROW_STRIDE, HEAD_DIM, MASK_KEYS, False)
    weights = weights.to(v_main.dtype)
    out_main = tl.dot(weights, v_main, out_main * shrink[:, None], input_precision=PRECISION)
    if REST > 1:
        v_rest = _load_rows(v_ptr, key, is_key, rest, ROW_STRIDE, HEAD_DIM, MASK_KEYS, MASK_REST)
        out_rest = tl.dot(weights, v_rest, out_rest * shrink[:, None], input_precision=PRECISION)
    return new_max, row_sum, out_main, out_rest


@triton.jit
def _find_segment(cu_seqlens_ptr, num_segments, program, BLOCK_QUERIES: tl.constexpr, CHUNK: tl.constexpr):
    """The last segment that starts at `program` or before: how many do, less one."""
    num_started = 0
    for first in range(0, num_segments, CHUNK):
        segment = first + tl.arange(0, CHUNK)
        is_segment = segment < num_segments
        offset = tl.load(cu_seqlens_ptr + segment, mask=is_segment, other=0)
        is_started = is_segment & (offset // BLOCK_QUERIES + segment <= program)
        num_started += tl.sum(is_started.to(tl.int32), 0)
    return num_started - 1


# Parameter order is what an ahead-of-time TensorRT plugin passes: inputs, then int32 scalars, then outputs.
# `segment_range` is an input of the op that only bodies which pad need; it is never read here.
@triton.jit(do_not_specialize=["num_segments"])
def qv_patch_attention(
    q_ptr, k_ptr, v_ptr, cu_seqlens_ptr, segment_range_ptr, num_segments, attended_ptr,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """See `plugins.patch_attention.reference.patch_attention_reference`; grid: `num_programs` x heads."""
    ROW_STRIDE: tl.constexpr = NUM_HEADS * HEAD_DIM
    program = tl.program_id(0)
    head = tl.program_id(1)
    segment = _find_segment(cu_seqlens_ptr, num_segments, program, BLOCK_QUERIES, CHUNK)
    start = tl.load(cu_seqlens_ptr + segment)
    end = tl.load(cu_seqlens_ptr + segment + 1)
    first_query = start + (program - start // BLOCK_QUERIES - segment) * BLOCK_QUERIES
    if first_query < end:
        q_ptr += head * HEAD_DIM
        k_ptr += head * HEAD_DIM
        v_ptr += head * HEAD_DIM
        attended_ptr += head * HEAD_DIM
        query = first_query + tl.arange(0, BLOCK_QUERIES)
        is_query = query < end
        main = tl.arange(0, MAIN)
        rest = MAIN + tl.arange(0, REST)
        q_main = _load_rows(q_ptr, query, is_query, main, ROW_STRIDE, HEAD_DIM, True, False)
        q_rest = _load_rows(q_ptr, query, is_query, rest, ROW_STRIDE, HEAD_DIM, True, True)
        scale = 1.4426950408889634 / tl.sqrt(HEAD_DIM * 1.0)  # exp(x) = exp2(x log2 e)

        row_max = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)
        row_sum = tl.zeros([BLOCK_QUERIES], tl.float32)
        out_main = tl.zeros([BLOCK_QUERIES, MAIN], tl.float32)
        out_rest = tl.zeros([BLOCK_QUERIES, REST], tl.float32)
        last_key = start + (end - start) // BLOCK_KEYS * BLOCK_KEYS
        for first_key in range(start, last_key, BLOCK_KEYS):
            row_max, row_sum, out_main, out_rest = _attend_block(
                q_main, q_rest, k_ptr, v_ptr, first_key, end, scale, row_max, row_sum, out_main, out_rest,
                ROW_STRIDE, HEAD_DIM, MAIN, REST, BLOCK_KEYS, PRECISION, False)  # fmt: skip
        if last_key < end:
            row_max, row_sum, out_main, out_rest = _attend_block(
                q_main, q_rest, k_ptr, v_ptr, last_key, end, scale, row_max, row_sum, out_main, out_rest,
                ROW_STRIDE, HEAD_DIM, MAIN, REST, BLOCK_KEYS, PRECISION, True)  # fmt: skip

        attended = attended_ptr + query.to(tl.int64)[:, None] * ROW_STRIDE
        out_main = (out_main / row_sum[:, None]).to(attended_ptr.dtype.element_ty)
        tl.store(attended + main[None, :], out_main, mask=is_query[:, None])
        if REST > 1:
            out_rest = (out_rest / row_sum[:, None]).to(attended_ptr.dtype.element_ty)
            is_rest = is_query[:, None] & (rest < HEAD_DIM)[None, :]
            tl.store(attended + rest[None, :], out_rest, mask=is_rest)


@dataclass(frozen=True)
class Tile:
    """Patches and keys of one step of a program, its warps and its pipeline's depth."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


FLOAT32_PRODUCTS = "ieee" if triton.knobs.runtime.interpret else "bf16x6"
"""How products of float32 inputs are made; float16 and bfloat16 ones are exact anyway.

Three bfloat16 parts and six products keep 24 bits of mantissa on tensor cores, where Triton's default,
TensorFloat-32, keeps 10, and plain multiply-adds spill kilobytes of registers. The interpreter knows no such thing.
"""

MIN_HEAD_DIM, MAX_HEAD_DIM = 32, 128
MAX_HEADS = 65_535
"""Heads are the grid's second axis."""


def tiles(head_dim: int, element_bytes: int) -> tuple[Tile, ...]:
    """What to choose from: no tile here spills, or takes more than 48 KB of shared memory (see the tests).

    Tactic i of the TensorRT plugin is number i - 1. The first is meant for images, the smaller ones for thumbnails.
    """
    if element_bytes == 4:
        return (Tile(64, 16, 4, 2),) if head_dim <= 96 else (Tile(16, 16, 4, 1),)
    if head_dim <= 96:
        return (Tile(128, 64, 8, 2), Tile(128, 32, 4, 3), Tile(64, 64, 4, 2), Tile(64, 32, 4, 3))
    return (Tile(128, 32, 8, 2), Tile(64, 32, 8, 2))


def kernel_constants(num_heads: int, head_dim: int, tile: Tile) -> dict[str, int | str]:
    """The kernel's compile-time arguments."""
    main = 64 if head_dim >= 64 else 32
    rest = head_dim - main
    return {
        "NUM_HEADS": num_heads,
        "HEAD_DIM": head_dim,
        "MAIN": main,
        "REST": max(16, triton.next_power_of_2(rest)) if rest else 1,  # a product needs 16; 1 stands for none
        "BLOCK_QUERIES": tile.queries,
        "BLOCK_KEYS": tile.keys,
        "CHUNK": 128,
        "PRECISION": FLOAT32_PRODUCTS,
    }


def num_programs(num_patches: Any, num_segments: Any, constants: Mapping[str, Any]) -> Any:
    """First axis of the grid, see the top of this file; symbolic if its arguments are. The second axis is H."""
    return num_patches // constants["BLOCK_QUERIES"] + num_segments


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    segment_range: Tensor,
    tile: Tile | None = None,
    attended: Tensor | None = None,
) -> Tensor:
    """Run the kernel on the tensors' GPU (on a CPU under TRITON_INTERPRET=1).

    Args:
        q, k, v, cu_seqlens, segment_range: as in `plugins.patch_attention.reference.patch_attention_reference`; made
            contiguous if needed. `cu_seqlens` must rise from 0 to P: reading it here would wait for the GPU.
        tile: one of `tiles(D, element_bytes)`; None chooses by the longest segment.
        attended: where to write, contiguous [P, H, D]; None allocates.

    Raises:
        ValueError: a shape, dtype or device that the kernel does not compute; all of them are named.
    """
    _check(q, k, v, cu_seqlens, segment_range)
    q, k, v, cu_seqlens = (x.contiguous() for x in (q, k, v, cu_seqlens))
    if attended is None:
        attended = torch.empty_like(q)
    num_patches, num_heads, head_dim = q.shape
    tile = tile or _choose_tile(tiles(head_dim, q.element_size()), longest=segment_range.shape[0])
    constants = kernel_constants(num_heads, head_dim, tile)
    num_segments = cu_seqlens.shape[0] - 1
    if num_patches:  # a grid must not be empty
        grid = (num_programs(num_patches, num_segments, constants), num_heads)
        with torch.cuda.device_of(q):
            qv_patch_attention[grid](
                q, k, v, cu_seqlens, segment_range, num_segments, attended,
                **constants, num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip
    return attended


def _choose_tile(choices: tuple[Tile, ...], longest: int) -> Tile:
    """The first tile whose queries a longest segment can fill; otherwise the one with the fewest."""
    return next((tile for tile in choices if tile.queries <= longest), min(choices, key=lambda t: t.queries))


def _check(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, segment_range: Tensor) -> None:
    problems = []
    if q.dim() != 3 or not q.shape == k.shape == v.shape:
        problems.append(
            f"q, k, v must be [P, H, D] alike, not {list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
        )
    else:
        if not MIN_HEAD_DIM <= q.shape[2] <= MAX_HEAD_DIM or q.shape[2] % 8:
            problems.append(
                f"D must be a multiple of 8 from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}, not {q.shape[2]}"
            )
        if not 1 <= q.shape[1] <= MAX_HEADS:
            problems.append(f"H must be 1 to {MAX_HEADS}, not {q.shape[1]}")
    if q.dtype not in {torch.float32, torch.float16, torch.bfloat16} or not q.dtype == k.dtype == v.dtype:
        problems.append(
            f"q, k, v must share float32, float16 or bfloat16, not {q.dtype}, {k.dtype}, {v.dtype}"
        )
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2 or cu_seqlens.dtype != torch.int32:
        problems.append(
            f"cu_seqlens must be [N+1] int32, N >= 1, not {list(cu_seqlens.shape)} {cu_seqlens.dtype}"
        )
    if segment_range.dim() != 1 or segment_range.dtype != torch.int32:
        problems.append(
            f"segment_range must be [M] int32, not {list(segment_range.shape)} {segment_range.dtype}"
        )
    if len({x.device for x in (q, k, v, cu_seqlens, segment_range)}) > 1:
        problems.append("all tensors must be on one device")
    if problems:
        raise ValueError("QvPatchAttention: " + "; ".join(problems))
