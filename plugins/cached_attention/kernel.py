"""`QvCachedAttention` on a GPU, over a cache that is written: split-KV flash attention, in Triton.

Attention over a cache is bound by reading it, and a decode step has few rows to share the work among: one query token,
B * K pairs of a sequence and a KV head. So the valid part of each sequence's cache is divided among up to `MAX_SPLITS`
programs (flash decoding). Each reads its keys and values once for all query heads of the group, folded into rows, and
gives a partial result with the logarithm of its sum of weights; a second kernel combines them. A prefill call, whose
tokens are rows enough, has fewer splits, one from S = `MAX_SPLITS` on; it is the same kernel.

- What is read follows `kv_lengths`, not the capacity: the split of a sequence is its valid length divided among the
  programs, in whole spans of `SPAN_KEYS`. A launch cannot read lengths, so its grid is for the longest, and programs
  without keys end at once. Example: 1,000 valid keys and 64 splits: spans of 64 keys, 16 programs have work.
- A row is a query token and a query head of the group, row = s * G + g; it sees positions up to `write_index` + s, and
  less than `kv_lengths`.
- Scores, running maximum and sums, partial results and their combination are float32.
"""

# mypy: disable-error-code="no-untyped-call,no-untyped-def,untyped-decorator"
# A Triton kernel is compiled from its text; its parameters have no Python types.

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from plugins.cached_attention.limits import size_problems
from plugins.patch_attention.kernel import FLOAT32_PRODUCTS

SPAN_KEYS = 64
"""A split is a multiple of it, so that its blocks of keys are whole."""

MAX_SPLITS = 64
"""Two KV heads then give 128 programs a sequence, about what an H100 has multiprocessors."""

MAX_PAIRS = 65_535
"""B * K is the grid's third axis."""


@triton.jit
def _span_of(kv_length, num_splits, SPAN_KEYS: tl.constexpr):
    """Keys of a split of a sequence."""
    return tl.cdiv(tl.cdiv(kv_length, num_splits), SPAN_KEYS) * SPAN_KEYS


@triton.jit
def _attend_keys(
    q, k_ptr, v_ptr, first_key, last_key, last_visible, row_max, row_sum, out, scale,
    HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_KEYS: tl.constexpr,
    PRECISION: tl.constexpr, MASK_KEYS: tl.constexpr,
):  # fmt: skip
    """One block of keys: scores, running softmax in base 2, weighted values.

    `scale` is D^-0.5 log2 e; `last_visible` [rows] is the last position that a row sees.
    """
    key = first_key + tl.arange(0, BLOCK_KEYS)
    channel = tl.arange(0, BLOCK_DIM)
    offsets = key[:, None] * HEAD_DIM + channel[None, :]
    is_loaded = (key < last_key)[:, None] & (channel < HEAD_DIM)[None, :]
    if MASK_KEYS or HEAD_DIM < BLOCK_DIM:
        k = tl.load(k_ptr + offsets, mask=is_loaded, other=0.0)
        v = tl.load(v_ptr + offsets, mask=is_loaded, other=0.0)
    else:
        k = tl.load(k_ptr + offsets)
        v = tl.load(v_ptr + offsets)
    scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision=PRECISION) * scale
    if MASK_KEYS:
        is_visible = (key[None, :] <= last_visible[:, None]) & (key < last_key)[None, :]
        scores = tl.where(is_visible, scores, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    # A row that has seen nothing yet keeps the maximum -inf, which must not be subtracted from itself.
    base = tl.where(new_max == float("-inf"), 0.0, new_max)
    shrink = tl.exp2(row_max - base)
    weights = tl.exp2(scores - base[:, None])
    row_sum = row_sum * shrink + tl.sum(weights, 1)
    out = tl.dot(weights.to(q.dtype), v.to(q.dtype), out * shrink[:, None], input_precision=PRECISION)
    return new_max, row_sum, out


# Parameter order is what an ahead-of-time TensorRT plugin passes: inputs, then int32 scalars, then outputs.
@triton.jit(do_not_specialize=["num_queries", "capacity", "num_splits"])
def qv_cached_attention_partials(
    q_ptr, key_ptr, value_ptr, write_index_ptr, kv_lengths_ptr, num_queries, capacity, num_splits,
    partials_ptr, log_sums_ptr,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_KEYS: tl.constexpr, SPAN_KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of a block of rows to one split of the keys; grid: `partials_grid`."""
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    split = tl.program_id(1)
    pair = tl.program_id(2)
    sequence = pair // NUM_KV_HEADS
    kv_head = pair % NUM_KV_HEADS
    kv_length = tl.load(kv_lengths_ptr + sequence)
    write_index = tl.load(write_index_ptr + sequence)
    span = _span_of(kv_length, num_splits, SPAN_KEYS)
    start = split * span
    if start < kv_length:
        first_row = tl.program_id(0) * BLOCK_ROWS
        row = first_row + tl.arange(0, BLOCK_ROWS)
        token = row // GROUP
        is_row = token < num_queries
        head = kv_head * GROUP + row % GROUP
        channel = tl.arange(0, BLOCK_DIM)
        is_channel = channel < HEAD_DIM
        # which of the B * S * H rows of q
        place = (sequence * num_queries + token).to(tl.int64) * NUM_HEADS + head
        pointers = q_ptr + place[:, None] * HEAD_DIM + channel[None, :]
        q = tl.load(pointers, mask=is_row[:, None] & is_channel[None, :], other=0.0)
        scale = 1.4426950408889634 / tl.sqrt(HEAD_DIM * 1.0)  # exp(x) = exp2(x log2 e)
        base = pair.to(tl.int64) * capacity * HEAD_DIM
        key_ptr += base
        value_ptr += base

        last_visible = write_index + token
        last_token = tl.minimum((first_row + BLOCK_ROWS - 1) // GROUP, num_queries - 1)
        seen_by_all = tl.minimum(write_index + first_row // GROUP + 1, kv_length)
        stop = tl.minimum(tl.minimum(start + span, kv_length), write_index + last_token + 1)
        whole = start + tl.maximum(tl.minimum(stop, seen_by_all) - start, 0) // BLOCK_KEYS * BLOCK_KEYS

        row_max = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
        row_sum = tl.zeros([BLOCK_ROWS], tl.float32)
        out = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
        for first_key in range(start, whole, BLOCK_KEYS):
            row_max, row_sum, out = _attend_keys(
                q, key_ptr, value_ptr, first_key, stop, last_visible, row_max, row_sum, out, scale,
                HEAD_DIM, BLOCK_DIM, BLOCK_KEYS, PRECISION, False)  # fmt: skip
        for first_key in range(whole, stop, BLOCK_KEYS):
            row_max, row_sum, out = _attend_keys(
                q, key_ptr, value_ptr, first_key, stop, last_visible, row_max, row_sum, out, scale,
                HEAD_DIM, BLOCK_DIM, BLOCK_KEYS, PRECISION, True)  # fmt: skip

        out = out / tl.where(row_sum > 0, row_sum, 1.0)[:, None]
        log_sum = tl.where(row_sum > 0, row_max + tl.log2(row_sum), float("-inf"))
        partial = place * num_splits + split  # [B, S, H, N]
        tl.store(log_sums_ptr + partial, log_sum, mask=is_row)
        pointers = partials_ptr + partial[:, None] * HEAD_DIM + channel[None, :]
        tl.store(pointers, out, mask=is_row[:, None] & is_channel[None, :])


# `q` gives the plugin its output's shape and dtype; it is never read here.
@triton.jit(do_not_specialize=["num_queries", "num_splits"])
def qv_cached_attention_combine(
    q_ptr, partials_ptr, log_sums_ptr, kv_lengths_ptr, num_queries, num_splits, attended_ptr,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
    SPAN_KEYS: tl.constexpr,
):  # fmt: skip
    """One token and head: its splits' results, weighed by their sums; grid: B * S * H."""
    place = tl.program_id(0).to(tl.int64)
    kv_length = tl.load(kv_lengths_ptr + place // (NUM_HEADS * num_queries))
    num_used = tl.cdiv(kv_length, _span_of(kv_length, num_splits, SPAN_KEYS))
    channel = tl.arange(0, BLOCK_DIM)
    is_channel = channel < HEAD_DIM
    total_max = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    out = tl.zeros([BLOCK_DIM], tl.float32)
    for first in range(0, num_used, BLOCK_SPLITS):
        split = first + tl.arange(0, BLOCK_SPLITS)
        is_split = split < num_used
        log_sum = tl.load(log_sums_ptr + place * num_splits + split, mask=is_split, other=float("-inf"))
        new_max = tl.maximum(total_max, tl.max(log_sum, 0))
        base = tl.where(new_max == float("-inf"), 0.0, new_max)
        shrink = tl.exp2(total_max - base)
        weights = tl.exp2(log_sum - base)
        offsets = (place * num_splits + split)[:, None] * HEAD_DIM + channel[None, :]
        partials = tl.load(partials_ptr + offsets, mask=is_split[:, None] & is_channel[None, :], other=0.0)
        total = total * shrink + tl.sum(weights, 0)
        out = out * shrink + tl.sum(weights[:, None] * partials, 0)
        total_max = new_max
    out = out / total
    tl.store(
        attended_ptr + place * HEAD_DIM + channel, out.to(attended_ptr.dtype.element_ty), mask=is_channel
    )


@dataclass(frozen=True)
class Tile:
    """Rows (token and head) and keys of one step of a program, its warps and its pipeline's depth."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


COMBINE_WARPS = 4


def tiles(element_bytes: int) -> tuple[Tile, ...]:
    """What to choose from, few rows for decode and many for prefill. None spills or exceeds 48 KB (see the tests).

    Tactic i of the TensorRT plugin is number i - 1.
    """
    if element_bytes == 4:
        return (Tile(16, 16, 4, 2),)
    return (Tile(16, 64, 4, 2), Tile(16, 32, 4, 3), Tile(64, 32, 4, 2), Tile(64, 32, 8, 2))


def kernel_constants(
    num_heads: int, num_key_value_heads: int, head_dim: int, tile: Tile
) -> dict[str, int | str]:
    """Compile-time arguments of the first kernel."""
    return {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_key_value_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_DIM": triton.next_power_of_2(head_dim),
        "BLOCK_ROWS": tile.rows,
        "BLOCK_KEYS": tile.keys,
        "SPAN_KEYS": SPAN_KEYS,
        "PRECISION": FLOAT32_PRODUCTS,
    }


def combine_constants(num_heads: int, head_dim: int) -> dict[str, int | str]:
    """Compile-time arguments of the second kernel."""
    return {
        "NUM_HEADS": num_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_DIM": triton.next_power_of_2(head_dim),
        "BLOCK_SPLITS": 16,
        "SPAN_KEYS": SPAN_KEYS,
    }


def num_splits(num_queries: Any) -> Any:
    """N, of a call with S tokens; symbolic if S is. N * S, what partial results take, is less than MAX_SPLITS + S."""
    return (num_queries + (MAX_SPLITS - 1)) // num_queries


def partials_grid(
    num_sequences: Any, num_queries: Any, num_heads: int, num_key_value_heads: int, tile: Tile
) -> tuple[Any, Any, Any]:
    """Blocks of rows, splits, pairs of a sequence and a KV head; symbolic if the arguments are."""
    num_rows = num_queries * (num_heads // num_key_value_heads)
    blocks = (num_rows + (tile.rows - 1)) // tile.rows
    return blocks, num_splits(num_queries), num_sequences * num_key_value_heads


def launch(
    q: Tensor,
    key: Tensor,
    value: Tensor,
    write_index: Tensor,
    kv_lengths: Tensor,
    tile: Tile | None = None,
    partials: tuple[Tensor, Tensor] | None = None,
    attended: Tensor | None = None,
) -> Tensor:
    """Run both kernels on the tensors' GPU (on a CPU under TRITON_INTERPRET=1).

    Args:
        q: [B, S, H, D]; made contiguous if needed, as are the next two.
        key, value: [B, K, L, D], the cache with this call's keys and values in it; one float dtype.
        write_index, kv_lengths: [B] int, as in `plugins.cached_attention.reference.cached_attention_reference`.
        tile: one of `tiles(element_bytes)`; None chooses by the number of rows.
        partials: where the first kernel writes, float32 [B, S, H, N, D] and [B, S, H, N]; None allocates.
        attended: where to write, contiguous [B, S, H, D]; None allocates.

    Returns:
        [B, S, H, D] in the dtype of `q`.

    Raises:
        ValueError: a shape, dtype or device that the kernel does not compute; all of them are named.
    """
    _check(q, key, value, write_index, kv_lengths)
    q, key, value = (x.contiguous() for x in (q, key, value))
    write_index, kv_lengths = (x.to(torch.int32).contiguous() for x in (write_index, kv_lengths))
    (num_sequences, num_queries, num_heads, head_dim), num_kv_heads = q.shape, key.shape[1]
    capacity = key.shape[2]
    tile = tile or choose_tile(q.element_size(), num_queries * (num_heads // num_kv_heads))
    splits = num_splits(num_queries)
    if partials is None:
        shape = (num_sequences, num_queries, num_heads, splits)
        partials = (
            q.new_empty((*shape, head_dim), dtype=torch.float32),
            q.new_empty(shape, dtype=torch.float32),
        )
    attended = torch.empty_like(q) if attended is None else attended
    grid = partials_grid(num_sequences, num_queries, num_heads, num_kv_heads, tile)
    with torch.cuda.device_of(q):
        qv_cached_attention_partials[grid](
            q, key, value, write_index, kv_lengths, num_queries, capacity, splits, *partials,
            **kernel_constants(num_heads, num_kv_heads, head_dim, tile),
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
        qv_cached_attention_combine[(num_sequences * num_queries * num_heads,)](
            q, *partials, kv_lengths, num_queries, splits, attended,
            **combine_constants(num_heads, head_dim), num_warps=COMBINE_WARPS,
        )  # fmt: skip
    return attended


def choose_tile(element_bytes: int, num_rows: int) -> Tile:
    """The smallest tile that holds the rows, or the largest one."""
    by_rows = sorted(tiles(element_bytes), key=lambda tile: tile.rows)
    return next((tile for tile in by_rows if tile.rows >= num_rows), by_rows[-1])


def _check(q: Tensor, key: Tensor, value: Tensor, write_index: Tensor, kv_lengths: Tensor) -> None:
    problems = []
    if q.dim() != 4 or key.dim() != 4 or key.shape != value.shape:
        shapes = f"{list(q.shape)}, {list(key.shape)}, {list(value.shape)}"
        problems.append(f"q must be [B, S, H, D], key and value [B, K, L, D], not {shapes}")
    else:
        problems += _shape_problems(q, key)
    if q.dtype not in {torch.float32, torch.float16, torch.bfloat16} or key.dtype != value.dtype:
        problems.append(
            f"q must be float32, float16 or bfloat16 and key, value alike, not {q.dtype}, {key.dtype}, {value.dtype}"
        )
    for name, x in (("write_index", write_index), ("kv_lengths", kv_lengths)):
        if x.shape != q.shape[:1] or x.dtype not in {torch.int32, torch.int64}:
            problems.append(f"{name} must be [B] int32 or int64, not {list(x.shape)} {x.dtype}")
    if len({x.device for x in (q, key, value, write_index, kv_lengths)}) > 1:
        problems.append("all tensors must be on one device")
    if problems:
        raise ValueError("QvCachedAttention: " + "; ".join(problems))


def _shape_problems(q: Tensor, key: Tensor) -> list[str]:
    problems = []
    if key.shape[0] != q.shape[0] or key.shape[3] != q.shape[3]:
        problems.append(f"q and the cache must share B and D, not {list(q.shape)}, {list(key.shape)}")
    problems += size_problems(q.shape[2], key.shape[1], q.shape[3], key.shape[2])
    if not 1 <= q.shape[0] * key.shape[1] <= MAX_PAIRS or not q.shape[1]:
        problems.append(
            f"S must be at least 1 and B * K 1 to {MAX_PAIRS}, not {list(q.shape)}, {list(key.shape)}"
        )
    return problems
