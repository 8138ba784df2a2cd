"""Grouped-query attention over a cache that is written in place: the definition of `QvCachedAttention`."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cached_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    write_index: Tensor,
    kv_lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Write this call's keys and values into the cache, then attend causally to all of it that is valid.

    Query token s of row b stands at cache position `write_index[b] + s` and sees positions up to its own: causal at
    the lower right of the valid block. Row b has `kv_lengths[b] - write_index[b]` valid tokens in this call; a ragged
    batch is padded on the right, and what comes out of padding rows is finite and means nothing.

    Worked example, prefill of prompts with 3 and 2 tokens: `write_index` = [0, 0], `kv_lengths` = [3, 2]; one decode
    step later `write_index` = [3, 2], `kv_lengths` = [4, 3]: the padding's key at position 2 of row 1 is overwritten.

    Args:
        q: [B, S, H, D]; k, v: [B, S, K, D] with H a multiple of K, one float dtype.
        past_key, past_value: [B, K, L, D], the cache; L is its capacity in tokens.
        write_index: [B] int, where this call's first key goes; `write_index + S` is at most L.
        kv_lengths: [B] int, valid cache length after this call, at least 1.

    Returns:
        Attended values [B, S, H, D] in the dtype of `q`, and the updated cache, [B, K, L, D] each.
        Scale is D^-0.5; scores and softmax are float32 whatever the dtype of `q`.
    """
    present_key, present_value = update_cache(k, v, past_key, past_value, write_index)
    return attend(q, present_key, present_value, write_index, kv_lengths), present_key, present_value


def update_cache(
    k: Tensor, v: Tensor, past_key: Tensor, past_value: Tensor, write_index: Tensor
) -> tuple[Tensor, Tensor]:
    """Its first half: the cache with this call's keys and values in it, [B, K, L, D] each."""
    rows = _rows(write_index, k.shape[1])
    return _write(past_key, k, rows), _write(past_value, v, rows)


def attend(
    q: Tensor, present_key: Tensor, present_value: Tensor, write_index: Tensor, kv_lengths: Tensor
) -> Tensor:
    """Its second half: [B, S, H, D] from the cache that is written."""
    rows = _rows(write_index, q.shape[1])
    columns = torch.arange(present_key.shape[2], device=q.device)  # [L]
    visible = (columns <= rows[..., None]) & (columns < kv_lengths[:, None, None])  # [B, S, L]
    attended = F.scaled_dot_product_attention(
        q.float().transpose(1, 2),  # [B, H, S, D]
        present_key.float(),
        present_value.float(),
        attn_mask=visible[:, None],
        enable_gqa=True,
    )
    return attended.transpose(1, 2).to(q.dtype)


def _rows(write_index: Tensor, num_tokens: int) -> Tensor:
    """[B, S], the cache position of each token of a call."""
    return write_index[:, None] + torch.arange(num_tokens, device=write_index.device)


def _write(cache: Tensor, update: Tensor, rows: Tensor) -> Tensor:
    update = update.transpose(1, 2).to(cache.dtype)  # [B, K, S, D]
    return cache.scatter(2, rows[:, None, :, None].expand_as(update).long(), update)
