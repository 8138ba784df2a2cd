import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from plugins.cached_attention.reference import cached_attention_reference


def causal_attention_in_float64(q, k, v):
    """Written apart, in NumPy float64: whole sequences, no cache. q [S, H, D], k and v [S, K, D]."""
    num_tokens, num_heads, head_dim = q.shape
    group = num_heads // k.shape[1]
    result = np.zeros((num_tokens, num_heads, head_dim))
    for token in range(num_tokens):
        for head in range(num_heads):
            keys = k[: token + 1, head // group].astype(np.float64)
            scores = keys @ q[token, head] / np.sqrt(head_dim)
            weights = np.exp(scores - scores.max())
            result[token, head] = weights / weights.sum() @ v[: token + 1, head // group]
    return result


@given(chunks=st.lists(st.integers(1, 5), min_size=1, max_size=5), seed=st.integers(0, 2**16))
def test_a_sequence_in_chunks_equals_float64_attention_over_the_whole(chunks, seed):
    generator = torch.Generator().manual_seed(seed)
    total = sum(chunks)
    q, k, v = (torch.randn(1, total, heads, 8, generator=generator) for heads in (4, 2, 2))
    keys = values = torch.full((1, 2, 32, 8), 1e3)  # stale, never seen
    outputs, start = [], 0
    for chunk in chunks:
        part = slice(start, start + chunk)
        write_index, kv_lengths = torch.tensor([start]), torch.tensor([start + chunk])
        attended, keys, values = cached_attention_reference(
            q[:, part], k[:, part], v[:, part], keys, values, write_index, kv_lengths
        )
        outputs.append(attended)
        start += chunk
    truth = causal_attention_in_float64(q[0].numpy(), k[0].numpy(), v[0].numpy())
    np.testing.assert_allclose(torch.cat(outputs, dim=1)[0].numpy(), truth, atol=1e-6)


def test_rows_of_a_ragged_batch_equal_each_row_alone():
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 3, 1]
    q, k, v = (torch.randn(3, 5, heads, 8, generator=generator) for heads in (4, 2, 2))
    empty = torch.zeros(3, 2, 16, 8)
    together, keys, _ = cached_attention_reference(
        q, k, v, empty, empty, torch.zeros(3).long(), torch.tensor(lengths)
    )
    for row, length in enumerate(lengths):
        one, part = slice(row, row + 1), slice(0, length)
        alone, _, _ = cached_attention_reference(
            q[one, part],
            k[one, part],
            v[one, part],
            empty[one],
            empty[one],
            torch.tensor([0]),
            torch.tensor([length]),
        )
        torch.testing.assert_close(together[one, part], alone, atol=1e-6, rtol=0)
    assert torch.isfinite(together).all()
    assert torch.equal(keys[0, :, 5:], empty[0, :, 5:])


def test_what_lies_beyond_the_valid_length_is_never_seen():
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 1, heads, 8, generator=generator) for heads in (4, 2, 2))
    past = torch.randn(1, 2, 16, 8, generator=generator)
    stale = past.clone()
    stale[:, :, 7:] = 1e6
    arguments = (torch.tensor([6]), torch.tensor([7]))
    fresh, _, _ = cached_attention_reference(q, k, v, past, past, *arguments)
    after_stale, _, _ = cached_attention_reference(q, k, v, stale, stale, *arguments)
    assert torch.equal(fresh, after_stale)
