"""Qwen2-VL's decoder: text and visual tokens to logits. (Qwen2 with M-RoPE, arXiv 2409.12191)

Letters: B batch, S query tokens, T = B * S, L KV capacity, H heads, K KV heads, D head_dim, C hidden_size.
Of a tensor-parallel group, a rank's decoder has its own heads, part of the MLP and part of the vocabulary; what the
ranks' parts give is summed (Megatron-LM, arXiv 1909.08053, section 3).
Modules carry Hugging Face's names, so a weight's name in the checkpoint is its path here.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.checkpoint.config import DecoderConfig
from plugins.cached_attention.op import cached_attention
from plugins.collective.op import all_reduce, gather_last
from plugins.quantized_cache_attention.op import quantized_cache_attention
from plugins.rotary.op import rotary
from plugins.rotary.reference import mrope_axes, mrope_frequencies, yarn_frequencies


class DecoderAttention(nn.Module):
    """Grouped-query attention over the cache, positions by M-RoPE."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        query_size = config.num_attention_heads * config.head_dim
        key_value_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)
        self.turns_a_tie = False
        """Of keys and values that are rounded into the cache: see `plugins.rounding.nearest_codes`."""

    def forward(
        self,
        x: Tensor,
        position_ids: Tensor,
        write_index: Tensor,
        kv_lengths: Tensor,
        frequencies: Tensor,
        axis_of: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        """Args: past: this layer's cache, parts in the contract's order; they come back updated after the output."""
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # [B, S, H or K, D]
        rotated_q, rotated_k = rotary(
            tempered(q, self.config).flatten(0, 1),
            k.flatten(0, 1),
            position_ids.flatten(1),
            frequencies,
            axis_of,
        )  # [T, H or K, D]
        q, k = rotated_q.view_as(q), rotated_k.view_as(k)
        present: Sequence[Tensor]
        if self.config.kv_cache is None:
            key, value = past
            attended, *present = cached_attention(q, k, v, key, value, write_index, kv_lengths)
        else:
            key, value, *scales = past
            attended, *present = quantized_cache_attention(
                *(q, k, v, key, value, scales[0], scales[1], write_index, kv_lengths),
                turns_a_tie=self.turns_a_tie,
            )
        return (self.o_proj(attended.flatten(2)), *present)


class DecoderMlp(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_ranks = config.num_ranks
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = DecoderAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = DecoderMlp(config)

    def forward(
        self,
        x: Tensor,
        position_ids: Tensor,
        write_index: Tensor,
        kv_lengths: Tensor,
        frequencies: Tensor,
        axis_of: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        attended, *present = self.self_attn(
            self.input_layernorm(x), position_ids, write_index, kv_lengths, frequencies, axis_of, *past
        )
        x = x + all_reduce(attended, self.num_ranks)
        computed = self.mlp(self.post_attention_layernorm(x))
        return (x + all_reduce(computed, self.num_ranks), *present)


class Decoder(nn.Module):
    """Token embedding, layers and final norm: `model` in the checkpoint. The vocabulary projection stands beside it."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.tokens_of_rank, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def embed(
        self,
        token_ids: Tensor,
        visual_embeds: Tensor,
        is_visual: Tensor,
        *rows: Tensor,
    ) -> Tensor:
        """Text tokens by table; the i-th visual pad of the flattened batch takes row i of `visual_embeds`.

        A pad that finds no row left, as one that the model wrote itself in decode, stays the plain token it is.

        Args:
            token_ids: [B, S] int. visual_embeds: [V, C], may be empty. is_visual: [B, S] bool.
            rows: of a rank alone: its first token, and the first row of the table's part that it has; [] int64.

        Returns:
            [B, S, C].
        """
        padded = F.pad(visual_embeds, (0, 0, 1, 0))  # [V + 1, C]: row 0 is for whoever takes none
        row = is_visual.flatten().cumsum(0, dtype=torch.int32).view_as(token_ids)
        takes_row = is_visual & (row <= visual_embeds.shape[0])
        visual = F.embedding(row.where(takes_row, torch.zeros_like(row)), padded)
        return torch.where(takes_row[..., None], visual, self.look_up(token_ids, *rows))

    def look_up(self, token_ids: Tensor, *rows: Tensor) -> Tensor:
        """Tokens [B, S] to embeddings [B, S, C]; see `embed` for `rows`.

        Of a rank's part of the table, an embedding comes from the one rank whose token it is and zeros from all others:
        the sum is exact.
        """
        if not rows:
            whole: Tensor = self.embed_tokens(token_ids)
            return whole
        first_token, first_row = rows
        row = token_ids - first_row
        is_here = (token_ids >= first_token) & (row < self.embed_tokens.num_embeddings)
        part = self.embed_tokens(torch.where(is_here, row, torch.zeros_like(row)))
        return all_reduce(
            torch.where(is_here[..., None], part, torch.zeros_like(part)), self.config.num_ranks
        )

    def forward(
        self,
        x: Tensor,
        position_ids: Tensor,
        write_index: Tensor,
        kv_lengths: Tensor,
        *past: Sequence[Tensor],
    ) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """All layers, without the final norm.

        Args:
            x: [B, S, C]. position_ids: [3, B, S] int32 (temporal, height, width). write_index, kv_lengths: [B] int.
            past: by part of the cache (keys, values, and their scales where it is kept in 8 bits, else nothing), one
                [B, K, L, D] for each layer; [B, K, L, 1] of scales.

        Returns:
            [B, S, C], and by part of the cache each layer's, updated.
        """
        frequencies, axis_of = (table.to(x.device) for table in mrope_tables(self.config))
        present = []
        for layer, *parts in zip(self.layers, *filter(len, past), strict=True):
            x, *updated = layer(x, position_ids, write_index, kv_lengths, frequencies, axis_of, *parts)
            present.append(updated)
        return x, list(zip(*present, strict=True))


def join_vocabulary(logits: Tensor, config: DecoderConfig) -> Tensor:
    """Logits [..., V] of all ranks from each rank's own; of one rank, as they are."""
    joined = gather_last(logits, config.num_ranks)
    num_twice = config.tokens_of_rank * config.num_ranks - config.vocab_size
    if not num_twice:
        return joined
    last = config.vocab_size + num_twice - config.tokens_of_rank  # where the last rank's begin
    return torch.cat((joined[..., :last], joined[..., last + num_twice :]), dim=-1)


def tempered(q: Tensor, config: DecoderConfig) -> Tensor:
    """Queries on YaRN's attention temperature: times the square of its attention factor, rounded once.

    Transformers scales sines and cosines, so that rotated queries and keys carry the factor each. Scores are the same
    with both on the queries: the cache holds keys as they are, and the op knows no temperature.
    """
    if config.yarn is None or config.yarn.attention_factor == 1.0:
        return q
    return (q.float() * config.yarn.attention_factor**2).to(q.dtype)


def mrope_tables(config: DecoderConfig) -> tuple[Tensor, Tensor]:
    """M-RoPE's `frequencies` [D/2] float32 and `axis_of` [D/2] int32. Computed, not stored: float32 in every dtype."""
    axis_of = mrope_axes(config.mrope_section)
    if config.yarn is None:
        return mrope_frequencies(config.head_dim, config.rope_theta), axis_of
    frequencies = yarn_frequencies(
        config.head_dim,
        config.rope_theta,
        factor=config.yarn.factor,
        original_max_position_embeddings=config.yarn.original_max_position_embeddings,
        beta_fast=config.yarn.beta_fast,
        beta_slow=config.yarn.beta_slow,
        truncate=config.yarn.truncate,
    )
    return frequencies, axis_of
