import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from plugins.patch_attention.reference import patch_attention_reference


def attention_in_float64(q, k, v, cu_seqlens):
    """Written apart, in NumPy float64: an explicit softmax for each segment and head."""
    result = np.zeros_like(q, dtype=np.float64)
    for start, end in itertools.pairwise(cu_seqlens):
        for head in range(q.shape[1]):
            scores = q[start:end, head].astype(np.float64) @ k[start:end, head].T / np.sqrt(q.shape[2])
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            result[start:end, head] = weights / weights.sum(axis=1, keepdims=True) @ v[start:end, head]
    return result


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 2**16))
def test_equals_float64_attention_within_segments(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(sum(lengths), 2, 8, generator=generator) for _ in range(3))
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    result = patch_attention_reference(q, k, v, cu_seqlens, torch.arange(max(lengths), dtype=torch.int32))
    truth = attention_in_float64(q.numpy(), k.numpy(), v.numpy(), cu_seqlens.numpy())
    np.testing.assert_allclose(result.numpy(), truth, atol=1e-6)


@given(lengths=st.permutations([4, 8, 12, 4]), seed=st.integers(0, 2**16))
def test_packing_changes_nothing(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    segments = [torch.randn(3, length, 2, 8, generator=generator) for length in lengths]
    segment_range = torch.arange(12, dtype=torch.int32)

    def attend(qkv: torch.Tensor, cu_seqlens: list[int]) -> torch.Tensor:
        q, k, v = qkv
        return patch_attention_reference(q, k, v, torch.tensor(cu_seqlens, dtype=torch.int32), segment_range)

    alone = [attend(segment, [0, segment.shape[1]]) for segment in segments]
    packed = attend(torch.cat(segments, dim=1), [0, *np.cumsum(lengths).tolist()])
    assert torch.equal(packed, torch.cat(alone))
