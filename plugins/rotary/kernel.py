"""`QvRotary` on a GPU: one Triton kernel for M-RoPE's three axes and the vision encoder's two.

The work is bound by memory: each value is read and written once. A program rotates `TOKENS` tokens of
`HEADS_PER_PROGRAM` heads, so that sines and cosines are computed once for several heads and kept in registers.
Programs of one token stand side by side in the grid: their reads meet in the same DRAM pages.
"""

# mypy: disable-error-code="no-untyped-call,no-untyped-def,untyped-decorator"
# A Triton kernel is compiled from its text; its parameters have no Python types.

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _sine_and_cosine(angle):
    """Sine and cosine of float32 angles up to 2 * 10^5 radians, to 1.5 * 10^-7.

    Not `tl.sin`: for angles past 10^5 (position 105,616 at frequency 1) its range reduction goes through local
    memory. Here pi/2 is split into parts of seven bits (Cody and Waite, "Software Manual for the Elementary
    Functions", 1980): quadrants below 2^17 times such a part are exact in float32, with or without fused
    multiply-add. The polynomials are least-maximum fits on [-0.8, 0.8].
    """
    quadrants = tl.floor(angle * 0.6366197466850281 + 0.5)
    r = angle - quadrants * 1.5625
    r = r - quadrants * 0.0081787109375
    r = r - quadrants * 0.00011730194091796875
    r = r - quadrants * 3.1391647326017846e-07
    z = r * r
    sine = r + r * z * (-0.16666649281978607 + z * (0.008331875316798687 - z * 0.00019482773495838046))
    cosine = 1.0 - 0.5 * z
    cosine += z * z * (0.04166664555668831 + z * (-0.0013887251261621714 + z * 2.442492223053705e-05))
    quadrant = quadrants.to(tl.int32)
    is_odd = (quadrant & 1) == 1
    signed_sine = tl.where((quadrant & 2) == 0, 1.0, -1.0) * tl.where(is_odd, cosine, sine)
    signed_cosine = tl.where(((quadrant + 1) & 2) == 0, 1.0, -1.0) * tl.where(is_odd, sine, cosine)
    return signed_sine, signed_cosine


@triton.jit
def _rotate_heads(
    x_ptr, rotated_ptr, token, is_token, sine, cosine, first_head,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF_BLOCK: tl.constexpr, HEADS_PER_PROGRAM: tl.constexpr,
):  # fmt: skip
    """Rotate heads `first_head` and up of a [T, NUM_HEADS, HEAD_DIM] tensor at `token` [TOKENS]."""
    HALF: tl.constexpr = HEAD_DIM // 2
    channel = tl.arange(0, HALF_BLOCK)[None, :]
    inside = is_token[:, None] & (channel < HALF)
    for i in tl.static_range(HEADS_PER_PROGRAM):
        head = first_head + i
        if head < NUM_HEADS:
            # int64: 2^31 elements are reached at 262,144 tokens of 64 heads of 128.
            offset = (token.to(tl.int64) * NUM_HEADS + head)[:, None] * HEAD_DIM + channel
            first = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
            second = tl.load(x_ptr + offset + HALF, mask=inside, other=0.0).to(tl.float32)
            rotated_first = (first * cosine - second * sine).to(rotated_ptr.dtype.element_ty)
            rotated_second = (second * cosine + first * sine).to(rotated_ptr.dtype.element_ty)
            tl.store(rotated_ptr + offset, rotated_first, mask=inside)
            tl.store(rotated_ptr + offset + HALF, rotated_second, mask=inside)


# Parameter order is what an ahead-of-time TensorRT plugin passes: inputs, then int32 scalars, then outputs.
@triton.jit(do_not_specialize=["num_tokens"])
def qv_rotary(
    q_ptr, k_ptr, positions_ptr, frequencies_ptr, axis_of_ptr, num_tokens, rotated_q_ptr, rotated_k_ptr,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HALF_BLOCK: tl.constexpr,
    TOKENS: tl.constexpr, HEADS_PER_PROGRAM: tl.constexpr,
):  # fmt: skip
    """See `plugins.rotary.reference.rotary_reference`; grid: `num_programs`."""
    Q_GROUPS: tl.constexpr = (NUM_HEADS + HEADS_PER_PROGRAM - 1) // HEADS_PER_PROGRAM
    KV_GROUPS: tl.constexpr = (NUM_KV_HEADS + HEADS_PER_PROGRAM - 1) // HEADS_PER_PROGRAM
    program = tl.program_id(0)
    group = program % (Q_GROUPS + KV_GROUPS)
    token = program // (Q_GROUPS + KV_GROUPS) * TOKENS + tl.arange(0, TOKENS)
    is_token = token < num_tokens

    frequency_index = tl.arange(0, HALF_BLOCK)
    is_frequency = frequency_index < HEAD_DIM // 2
    frequency = tl.load(frequencies_ptr + frequency_index, mask=is_frequency, other=0.0)
    axis = tl.load(axis_of_ptr + frequency_index, mask=is_frequency, other=0)
    position_offset = axis.to(tl.int64)[None, :] * num_tokens + token[:, None]
    is_position = is_token[:, None] & is_frequency[None, :]
    position = tl.load(positions_ptr + position_offset, mask=is_position, other=0)
    sine, cosine = _sine_and_cosine(position.to(tl.float32) * frequency[None, :])  # [TOKENS, HALF_BLOCK]

    if group < Q_GROUPS:
        first_head = group * HEADS_PER_PROGRAM
        _rotate_heads(q_ptr, rotated_q_ptr, token, is_token, sine, cosine, first_head,
                      NUM_HEADS, HEAD_DIM, HALF_BLOCK, HEADS_PER_PROGRAM)  # fmt: skip
    else:
        first_head = (group - Q_GROUPS) * HEADS_PER_PROGRAM
        _rotate_heads(k_ptr, rotated_k_ptr, token, is_token, sine, cosine, first_head,
                      NUM_KV_HEADS, HEAD_DIM, HALF_BLOCK, HEADS_PER_PROGRAM)  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """What one program does, and with how many warps."""

    tokens: int
    heads: int
    num_warps: int
    num_stages: int = 1
    """No loop to pipeline."""


TILES = (Tile(16, 4, 4), Tile(8, 4, 2), Tile(16, 8, 4), Tile(32, 4, 8))
"""Tactic i of the TensorRT plugin is `TILES[i - 1]`; the launcher takes the first."""

MIN_HEAD_DIM, MAX_HEAD_DIM = 16, 256


def kernel_constants(num_heads: int, num_kv_heads: int, head_dim: int, tile: Tile) -> dict[str, int]:
    """The kernel's compile-time arguments."""
    return {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "HALF_BLOCK": triton.next_power_of_2(head_dim // 2),
        "TOKENS": tile.tokens,
        "HEADS_PER_PROGRAM": tile.heads,
    }


def num_programs(
    num_tokens: Any, constants: Mapping[str, int], ceil_div: Callable[[Any, int], Any] = triton.cdiv
) -> Any:
    """Size of the one-dimensional grid; with TensorRT's `cdiv`, a symbolic expression in its symbolic T."""
    heads = constants["HEADS_PER_PROGRAM"]
    groups = triton.cdiv(constants["NUM_HEADS"], heads) + triton.cdiv(constants["NUM_KV_HEADS"], heads)
    return ceil_div(num_tokens, constants["TOKENS"]) * groups


def launch(
    q: Tensor,
    k: Tensor,
    positions: Tensor,
    frequencies: Tensor,
    axis_of: Tensor,
    tile: Tile = TILES[0],
    outputs: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the kernel on the tensors' GPU (on a CPU under TRITON_INTERPRET=1).

    Args:
        q, k, positions, frequencies, axis_of: as in `plugins.rotary.reference.rotary_reference`; made contiguous
            if needed.
            `axis_of` must name rows of `positions`: reading it here would wait for the GPU.
        tile: see `TILES`.
        outputs: where to write, contiguous [T, H, D] and [T, K, D]; None allocates.

    Raises:
        ValueError: a shape, dtype or device that the kernel does not compute; all of them are named.
    """
    _check(q, k, positions, frequencies, axis_of)
    q, k, positions, frequencies, axis_of = (x.contiguous() for x in (q, k, positions, frequencies, axis_of))
    rotated_q, rotated_k = outputs or (torch.empty_like(q), torch.empty_like(k))
    constants = kernel_constants(q.shape[1], k.shape[1], q.shape[2], tile)
    if q.shape[0]:  # a grid must not be empty
        grid = (num_programs(q.shape[0], constants),)
        with torch.cuda.device_of(q):
            qv_rotary[grid](
                q, k, positions, frequencies, axis_of, q.shape[0], rotated_q, rotated_k,
                **constants, num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip
    return rotated_q, rotated_k


def _check(q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor, axis_of: Tensor) -> None:
    problems = []
    if q.dim() != 3 or k.dim() != 3 or (q.shape[0], q.shape[2]) != (k.shape[0], k.shape[2]):
        problems.append(f"q must be [T, H, D] and k [T, K, D], not {list(q.shape)} and {list(k.shape)}")
    else:
        tokens, _, head_dim = q.shape
        if head_dim % 2 or not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM:
            problems.append(f"D must be even, {MIN_HEAD_DIM} to {MAX_HEAD_DIM}, not {head_dim}")
        if positions.dim() != 2 or positions.shape[1] != tokens:
            problems.append(f"positions must be [A, {tokens}], not {list(positions.shape)}")
        for name, x in (("frequencies", frequencies), ("axis_of", axis_of)):
            if list(x.shape) != [head_dim // 2]:
                problems.append(f"{name} must be [{head_dim // 2}], not {list(x.shape)}")
    if q.dtype not in {torch.float32, torch.float16, torch.bfloat16} or k.dtype != q.dtype:
        problems.append(f"q and k must share float32, float16 or bfloat16, not {q.dtype} and {k.dtype}")
    if (positions.dtype, frequencies.dtype, axis_of.dtype) != (torch.int32, torch.float32, torch.int32):
        problems.append(
            "positions, frequencies, axis_of must be int32, float32, int32, "
            f"not {positions.dtype}, {frequencies.dtype}, {axis_of.dtype}"
        )
    if len({x.device for x in (q, k, positions, frequencies, axis_of)}) > 1:
        problems.append("all tensors must be on one device")
    if problems:
        raise ValueError("QvRotary: " + "; ".join(problems))
