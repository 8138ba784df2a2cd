"""Qwen2-VL's vision encoder: packed patches to tokens for the decoder. (arXiv 2409.12191, section 2.1)

Letters: P patches, N segments, V visual tokens, E embed_dim, H heads, D head_dim, C the decoder's hidden size.
Modules carry Hugging Face's names, so a weight's name in the checkpoint is its path here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.checkpoint.config import VisionConfig
from plugins.patch_attention.op import patch_attention
from plugins.rotary.op import rotary
from plugins.rotary.reference import patch_axes, patch_frequencies

LAYER_NORM_EPS = 1e-6
"""Not in `config.json`: fixed in the published model's code."""


class PatchEmbed(nn.Module):
    """A 3-D convolution whose stride is its kernel: one matrix product for each patch of 2 frames x 14 x 14 pixels."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.embed_dim, kernel, stride=kernel, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches, self.proj.weight.flatten(1))  # [P, 1176] -> [P, E]


class VisionAttention(nn.Module):
    """Multi-head attention within each segment, positions by 2-D rotary."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        segment_range: Tensor,
        frequencies: Tensor,
        axis_of: Tensor,
    ) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))  # [P, 3, H, D]
        q, k, v = (qkv.select(1, i) for i in range(3))
        q, k = rotary(q, k, positions, frequencies, axis_of)  # [P, H, D]
        return self.proj(patch_attention(q, k, v, cu_seqlens, segment_range).flatten(1))  # [P, E]


class VisionMlp(nn.Module):
    """Two layers around QuickGELU, x * sigmoid(1.702 x)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        return self.fc2(hidden * torch.sigmoid(1.702 * hidden))


class VisionBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, LAYER_NORM_EPS)
        self.norm2 = nn.LayerNorm(config.embed_dim, LAYER_NORM_EPS)
        self.attn = VisionAttention(config)
        self.mlp = VisionMlp(config)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        segment_range: Tensor,
        frequencies: Tensor,
        axis_of: Tensor,
    ) -> Tensor:
        x = x + self.attn(self.norm1(x), positions, cu_seqlens, segment_range, frequencies, axis_of)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nn.Module):
    """Four neighbouring patches (consecutive rows, since patches come in merge order) become one token."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.merged_size = config.embed_dim * config.patches_per_token
        self.ln_q = nn.LayerNorm(config.embed_dim, LAYER_NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(self.merged_size, self.merged_size),
            nn.GELU(),
            nn.Linear(self.merged_size, config.hidden_size),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x).view(-1, self.merged_size))  # [P, E] -> [V, 4E] -> [V, C]


class VisionEncoder(nn.Module):
    """Patches of any number of images and videos, packed in one row, to visual tokens."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config)

    def forward(
        self, patches: Tensor, positions: Tensor, cu_seqlens: Tensor, segment_range: Tensor
    ) -> Tensor:
        """Encode a packed row of patches.

        Args:
            patches: [P, 1176], dtype of the weights.
            positions: [2, P] int32, row and column of each patch, in merge order.
            cu_seqlens: [N+1] int32, patch offsets of the segments.
            segment_range: [M] int32, 0 .. M-1 with M the longest segment.

        Returns:
            visual_embeds [V, C], dtype of the weights.
        """
        frequencies, axis_of = (table.to(patches.device) for table in patch_rotary_tables(self.config))
        x = self.patch_embed(patches)
        for block in self.blocks:
            x = block(x, positions, cu_seqlens, segment_range, frequencies, axis_of)
        return self.merger(x)


def patch_rotary_tables(config: VisionConfig) -> tuple[Tensor, Tensor]:
    """The 2-D rotary's `frequencies` [D/2] float32 and `axis_of` [D/2] int32. Computed, not stored."""
    return patch_frequencies(config.head_dim), patch_axes(config.head_dim)
