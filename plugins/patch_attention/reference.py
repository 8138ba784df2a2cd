"""Attention over a packed row of patches: the definition of `QvPatchAttention`."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, segment_range: Tensor
) -> Tensor:
    """Full attention inside each segment of a packed row; none across segments.

    A segment is one image, or one temporal grid step of a video. Worked example: two images of 4 and 8 patches
    give `cu_seqlens` = [0, 4, 12]; patches 0..3 see each other, patches 4..11 see each other, and nothing else.

    Args:
        q, k, v: [P, H, D], one float dtype.
        cu_seqlens: [N+1] int32, patch offsets of the segments, from 0 to P, increasing.
        segment_range: [M] int32, 0 .. M-1 with M at least the longest segment. Its length, not its content, is what
            bodies that pad or launch a grid need; the reference does not read it.

    Returns:
        [P, H, D], dtype of `q`. Scale is D^-0.5; scores and softmax are float32 whatever the dtype of `q`.
    """
    del segment_range
    offsets: list[int] = cu_seqlens.tolist()
    segments = itertools.pairwise(offsets)
    return torch.cat([_attend(q[start:end], k[start:end], v[start:end]) for start, end in segments])


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q_heads, k_heads, v_heads = (x.float().transpose(0, 1) for x in (q, k, v))  # [H, p, D]
    attended = F.scaled_dot_product_attention(q_heads, k_heads, v_heads)
    return attended.transpose(0, 1).to(q.dtype)  # [p, H, D]
