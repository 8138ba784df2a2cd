import itertools

import pytest
import torch

from examples.tiny.packed_attention import attention_over_documents, pack_segments, packed_attention
from plugins.cached_attention import op as cached_attention_op
from plugins.cached_attention import reference as cached_attention_module
from plugins.cached_attention.reference import cached_attention_reference
from plugins.patch_attention.reference import patch_attention_reference
from plugins.rotary import op as rotary_op
from plugins.rotary.reference import rotary_reference

OFFSETS = (0, 4, 12, 16, 49, 53, 60)


def _same_values_and_gradients(actual, expected, inputs):
    torch.testing.assert_close(actual, expected)
    weights = torch.randn_like(actual)
    gradients = [torch.autograd.grad((out * weights).sum(), inputs) for out in (actual, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_packed_attention_is_patch_attention_with_gradients():
    torch.manual_seed(0)
    q, k, v = (torch.randn(OFFSETS[-1], 3, 8, requires_grad=True) for _ in range(3))
    actual = packed_attention(q, k, v, pack_segments(OFFSETS), causal=False)
    expected = patch_attention_reference(q, k, v, torch.tensor(OFFSETS), torch.arange(33))
    _same_values_and_gradients(actual, expected, (q, k, v))


def test_packed_causal_attention_is_cached_attention_of_each_document():
    torch.manual_seed(1)
    q = torch.randn(OFFSETS[-1], 4, 8, requires_grad=True)
    k, v = (torch.randn(OFFSETS[-1], 2, 8, requires_grad=True) for _ in range(2))
    actual = packed_attention(q, k, v, pack_segments(OFFSETS), causal=True)
    parts = []
    for start, end in itertools.pairwise(OFFSETS):
        cache = torch.zeros(1, 2, end - start, 8)
        index, length = torch.tensor([0]), torch.tensor([end - start])
        own = slice(start, end)
        part = cached_attention_reference(
            q[None, own], k[None, own], v[None, own], cache, cache, index, length
        )[0]
        parts.append(part[0])
    _same_values_and_gradients(actual, torch.cat(parts), (q, k, v))


def test_a_shared_start_stands_before_every_other_segment():
    torch.manual_seed(3)
    q = torch.randn(OFFSETS[-1], 4, 8, requires_grad=True)
    k, v = (torch.randn(OFFSETS[-1], 2, 8, requires_grad=True) for _ in range(2))
    packing = pack_segments(OFFSETS, has_shared_start=True)
    actual = packed_attention(q, k, v, packing, causal=True)
    shared = OFFSETS[1]
    parts = []
    for start, end in itertools.pairwise(OFFSETS[1:]):
        rows = torch.cat([torch.arange(shared), torch.arange(start, end)])
        parts.append(packed_attention(q[rows], k[rows], v[rows], pack_segments((0, len(rows))), causal=True))
    expected = torch.cat([parts[0][:shared], *(part[shared:] for part in parts)])
    _same_values_and_gradients(actual, expected, (q, k, v))


def test_while_training_the_ops_are_the_packed_ones_and_afterwards_the_references():
    torch.manual_seed(2)
    q, k = torch.randn(6, 4, 8, requires_grad=True), torch.randn(6, 2, 8, requires_grad=True)
    table = (torch.arange(6).repeat(3, 1), torch.rand(4), torch.tensor([0, 1, 2, 2]))
    expected = rotary_reference(q, k, *table)
    with attention_over_documents((0,), (0, 0, 2, 6)):
        rotated = rotary_op.rotary(q, k, *table)
        x = q[None, :, :2]
        attended, cache, _ = cached_attention_op.cached_attention(x, x, x, x, x, x, x)
    _same_values_and_gradients(torch.cat(rotated, 1), torch.cat(expected, 1), (q, k))
    assert cache is x
    torch.testing.assert_close(attended[0, 2], x[0, 2])  # the second document's first token sees itself alone
    assert cached_attention_module.cached_attention_reference is cached_attention_reference


@pytest.mark.parametrize("has_shared_start", [False, True])
@pytest.mark.parametrize("offsets", [(0, 5), (0, 3, 6, 9), OFFSETS])
def test_every_token_has_one_slot(offsets, has_shared_start):
    packing = pack_segments(offsets, has_shared_start=has_shared_start)
    rows = torch.cat([group.rows for group in packing.groups])
    assert torch.equal(rows[packing.slots], torch.arange(offsets[-1]))
    assert len(packing.slots.unique()) == offsets[-1]
