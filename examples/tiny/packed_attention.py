"""Attention over packed rows for training: segments of similar length go through one call together.

The reference ops attend segment by segment in float32: right for a reference, slow for thousands of short segments.
`packed_attention` says the same (the tests compare them), in the dtype of its inputs, and stands in for both ops
while a training step runs.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins.cached_attention import reference as cached_attention_reference
from plugins.patch_attention import reference as patch_attention_reference
from plugins.rotary import reference as rotary_reference

GROWTH = 1.3
"""Segments are padded to at most this multiple of their length."""


@dataclass(frozen=True)
class Group:
    """N segments of a packed row, padded to M tokens each."""

    num_segments: int
    longest: int
    rows: Tensor
    """[N * M] token of each padded slot; padding repeats the segment's last token."""
    is_padding: Tensor
    """[N, 1, 1, M] bool."""
    is_even: bool
    """All segments have the same length, so that nothing is padded."""


@dataclass(frozen=True)
class Packing:
    """How a packed row of T tokens splits into groups, and back."""

    groups: tuple[Group, ...]
    slots: Tensor
    """[T] where each token stands among all groups' padded slots, one group after another."""
    has_shared_start: bool
    """The first group is one segment, which stands before each of the others and is computed once for all."""


def pack_segments(
    offsets: Sequence[int], device: torch.device | str = "cpu", *, has_shared_start: bool = False
) -> Packing:
    """Sort the segments of a packed row by length and group neighbours."""
    pairs = list(itertools.pairwise(offsets))
    members = [[pairs.pop(0)]] if has_shared_start else []
    apart = len(members)
    for start, end in sorted(pairs, key=lambda pair: pair[1] - pair[0]):
        if len(members) == apart or (end - start) > GROWTH * (members[-1][0][1] - members[-1][0][0]):
            members.append([])
        members[-1].append((start, end))
    groups = tuple(_group(segments, device) for segments in members)
    slots = torch.empty(offsets[-1], dtype=torch.int64, device=device)
    first = 0
    for group in groups:
        valid = ~group.is_padding.flatten()
        slots[group.rows[valid]] = torch.arange(first, first + valid.numel(), device=device)[valid]
        first += valid.numel()
    return Packing(groups, slots, has_shared_start)


def _group(segments: list[tuple[int, int]], device: torch.device | str) -> Group:
    starts = torch.tensor([start for start, _ in segments], device=device)
    lengths = torch.tensor([end - start for start, end in segments], device=device)
    longest = int(lengths[-1])
    steps = torch.arange(longest, device=device)
    rows = starts[:, None] + torch.minimum(steps, lengths[:, None] - 1)
    is_padding = steps >= lengths[:, None]
    return Group(
        len(segments), longest, rows.flatten(), is_padding[:, None, None], not bool(is_padding.any())
    )


class _Pad(torch.autograd.Function):
    """Packed rows [T, ...] to padded slots, all groups' one after another; padding has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return x.index_select(0, torch.cat([group.rows for group in packing.groups]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.index_select(0, ctx.packing.slots), None


class _Unpad(torch.autograd.Function):
    """Padded slots back to packed rows. Written apart: a gather's own gradient is a slow scatter on CPU."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return padded.index_select(0, packing.slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        groups = ctx.packing.groups
        padded = grad.index_select(0, torch.cat([group.rows for group in groups]))
        is_padding = torch.cat([group.is_padding.flatten() for group in groups])
        return padded.masked_fill_(is_padding[:, None, None], 0), None


def packed_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, *, causal: bool) -> Tensor:
    """Attention inside each segment of a packed row.

    Args:
        q: [T, H, D]; k, v: [T, K, D], H a multiple of K.
        packing: where the segments lie.
        causal: a token sees none after it.

    Returns:
        [T, H, D].
    """
    num_heads, num_key_value_heads = q.shape[1], k.shape[1]
    padded = _Pad.apply(torch.cat([q * q.shape[-1] ** -0.5, k, v], dim=1), packing)  # [slots, H + 2K, D]
    sizes = [group.num_segments * group.longest for group in packing.groups]
    outputs: list[Tensor] = []
    for group, rows in zip(packing.groups, padded.split(sizes), strict=True):
        heads = rows.unflatten(0, (group.num_segments, group.longest)).transpose(1, 2)  # [N, H + 2K, M, D]
        query, key, value = heads.split([num_heads, num_key_value_heads, num_key_value_heads], dim=1)
        bias = _bias(group, causal=causal)
        if packing.has_shared_start:
            if not outputs:
                start = (key, value)
            else:
                key, value = (_put_before(x, y) for x, y in zip(start, (key, value), strict=True))
                bias = None if bias is None else F.pad(bias, (start[0].shape[2], 0))
        attended = _attend(query, key, value, bias)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return _Unpad.apply(torch.cat(outputs), packing)


def _put_before(start: Tensor, rest: Tensor) -> Tensor:
    """[1, K, P, D] before each of [N, K, M, D]."""
    return torch.cat([start.expand(len(rest), -1, -1, -1), rest], dim=2)


def _bias(group: Group, *, causal: bool) -> Tensor | None:
    """What is added to the scores: minus infinity where a query must not look."""
    if causal:  # padding stands at the right, so a causal segment never sees it
        hidden = torch.ones_like(
            group.rows[: group.longest].expand(group.longest, -1), dtype=torch.bool
        ).triu(1)
    elif group.is_even:
        return None
    else:
        hidden = group.is_padding  # [N, 1, 1, M]
    return torch.zeros_like(hidden, dtype=torch.float32).masked_fill_(hidden, float("-inf"))


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Plain products: PyTorch's fused attention is several times slower on CPU for segments this short.

    Args:
        query: [N, H, M, D], scaled; key, value: [N, K, M, D]; bias: broadcasts to [N, H, M, M].
    """
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return scores.softmax(-1) @ value


class _Rotate(torch.autograd.Function):
    """x [T, H, D] rotated by angles whose cosine and sine are [T, 1, D/2]; the gradient turns back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class _Rotary:
    """The rotary op with one table of cosines for all layers that share positions."""

    def __init__(self) -> None:
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(
        self, q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor, axis_of: Tensor
    ) -> tuple[Tensor, Tensor]:
        num_axes = positions.shape[0]
        if num_axes not in self._tables:
            angles = positions[axis_of.long()].T.float() * frequencies
            self._tables[num_axes] = (angles.cos()[:, None].to(q.dtype), angles.sin()[:, None].to(q.dtype))
        rotated = _Rotate.apply(torch.cat([q, k], dim=1), *self._tables[num_axes])
        return rotated.split([q.shape[1], k.shape[1]], dim=1)


@contextmanager
def attention_over_documents(
    cu_seqlens: Sequence[int], documents: Sequence[int], device: torch.device | str = "cpu"
) -> Iterator[None]:
    """Let both ops attend over packed rows; the decoder takes samples one after another as one row, without a cache.

    Args:
        cu_seqlens: patch offsets of the segments.
        documents: token offsets; the first document is the start that all others share.
        device: where queries and keys are.
    """
    segments = pack_segments(cu_seqlens, device)
    texts = pack_segments(documents, device, has_shared_start=True)

    def patch_attention(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
        return packed_attention(q, k, v, segments, causal=False)

    def cached_attention(
        q: Tensor, k: Tensor, v: Tensor, past_key: Tensor, past_value: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        attended = packed_attention(q[0], k[0], v[0], texts, causal=True)
        return attended[None], past_key, past_value

    with (
        patch.object(patch_attention_reference, "patch_attention_reference", patch_attention),
        patch.object(rotary_reference, "rotary_reference", _Rotary()),
        patch.object(cached_attention_reference, "cached_attention_reference", cached_attention),
    ):
        yield
