"""Qwen2-VL whole: vision encoder, decoder, vocabulary projection, and how a checkpoint becomes one in memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from export.checkpoint.config import DecoderConfig, ModelConfig
from export.checkpoint.tensors import Checkpoint, open_checkpoint
from export.models.configuration import KV_CACHE_DTYPES
from export.models.families import family_of
from export.models.qwen2_vl.decoder import Decoder, join_vocabulary
from export.models.qwen2_vl.vision import VisionEncoder
from export.quantization.simulated import Rounding, round_inputs


class KvCache(NamedTuple):
    """One [B, K, L, D] tensor for each layer, keys and values."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    key_scales: Sequence[Tensor] = ()
    """[B, K, L, 1] for each layer; empty unless the cache is kept in 8 bits."""
    value_scales: Sequence[Tensor] = ()


class Qwen2VL(nn.Module):
    """The reference every engine is measured against."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = VisionEncoder(config.vision)
        self.model = Decoder(config.decoder)
        self.lm_head = nn.Linear(config.decoder.hidden_size, config.decoder.tokens_of_rank, bias=False)
        if config.decoder.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def encode(self, patches: Tensor, positions: Tensor, cu_seqlens: Tensor) -> Tensor:
        """The vision graph: patches [P, 1176] to visual_embeds [V, C]; see `VisionEncoder.forward`."""
        longest = int(cu_seqlens.diff().max())
        segment_range = torch.arange(longest, dtype=torch.int32, device=patches.device)
        visual_embeds: Tensor = self.visual(patches, positions, cu_seqlens, segment_range)
        return visual_embeds

    def decode(
        self,
        token_ids: Tensor,
        visual_embeds: Tensor,
        position_ids: Tensor,
        write_index: Tensor,
        kv_lengths: Tensor,
        logits_index: Tensor,
        cache: KvCache,
    ) -> tuple[Tensor, KvCache]:
        """The decoder graph: tokens [B, S] to float32 logits [B, K', vocab] and the updated cache.

        Prefill is a call with many tokens, decode a call with one; `logits_index` [B, K'] says which of the S query
        tokens to project.
        """
        x = self.embed(token_ids, visual_embeds)
        x, present = self.model(x, position_ids, write_index, kv_lengths, *cache)
        return self.project(x, logits_index), KvCache(*present)

    def embed(self, token_ids: Tensor, visual_embeds: Tensor, *rows: Tensor) -> Tensor:
        """Tokens [B, S] to [B, S, C], visual embeddings at the image and video pads; see `Decoder.embed`."""
        is_visual = (token_ids == self.config.image_token_id) | (token_ids == self.config.video_token_id)
        return self.model.embed(token_ids, visual_embeds, is_visual, *rows)

    def project(self, x: Tensor, logits_index: Tensor) -> Tensor:
        """Final norm and vocabulary projection of the asked tokens only: [B, S, C] to float32 [B, K', vocab]."""
        index = logits_index.long()[..., None].expand(-1, -1, x.shape[-1])  # [B, K', C]
        logits: Tensor = self.lm_head(self.model.norm(x.gather(1, index)))
        return join_vocabulary(logits, self.config.decoder).float()

    def new_cache(self, batch: int, capacity: int, dtype: torch.dtype | None = None) -> KvCache:
        """An empty cache of `capacity` tokens for each of `batch` rows, on the weights' device.

        Args:
            batch: rows.
            capacity: tokens.
            dtype: of keys and values that are not kept in 8 bits; None: the weights'.
        """
        weight, config = self.lm_head.weight, self.config.decoder
        shape = cache_shape(config, batch, capacity)
        layers = range(config.num_hidden_layers)

        def part(dtype: torch.dtype, *shape: int) -> list[Tensor]:
            return [weight.new_zeros(shape, dtype=dtype) for _ in layers]

        if config.kv_cache is None:
            dtype = dtype or weight.dtype
            return KvCache(part(dtype, *shape), part(dtype, *shape))
        codes: torch.dtype = getattr(torch, KV_CACHE_DTYPES[config.kv_cache])
        scales = (*shape[:-1], 1)
        return KvCache(
            *(part(codes, *shape) for _ in range(2)), *(part(torch.float32, *scales) for _ in range(2))
        )


def cache_shape(config: DecoderConfig, batch: int, capacity: int) -> tuple[int, int, int, int]:
    """[B, K, L, D] of one layer's keys or values."""
    return (batch, config.num_key_value_heads, capacity, config.head_dim)


def load_reference(
    directory: Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Qwen2VL:
    """Load a checkpoint into the reference, cast to `dtype`, ready for inference.

    Raises:
        UserError: no Qwen2-VL checkpoint, or missing, unexpected and mis-shaped tensors, all listed at once.
    """
    checkpoint = open_checkpoint(directory)
    model = family_of(checkpoint.config.model_type).reference(checkpoint.config)
    roundings: dict[str, Rounding] = {}
    tensors = {name: tensor.to(dtype) for name, tensor in _read_tensors(checkpoint, device, roundings)}
    tied = {"lm_head.weight"} if checkpoint.config.decoder.tie_word_embeddings else set()
    keys = model.load_state_dict(tensors, strict=False, assign=True)
    assert set(keys.missing_keys) == tied, keys
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    round_inputs(model, roundings)
    return model.eval().requires_grad_(False)


def _read_tensors(
    checkpoint: Checkpoint, device: str | torch.device, roundings: dict[str, Rounding]
) -> Iterator[tuple[str, Tensor]]:
    """Every weight; quantized ones by what their numbers mean, each value rounded once to float32.

    Those whose products round their inputs are put into `roundings` by name.
    """
    for stored in checkpoint.quantized():
        linear = stored.read()
        if linear.activations is not None:
            roundings[stored.name] = Rounding(linear.precision, linear.activations)
        yield stored.name, torch.from_numpy(linear.dequantized()).to(device)
    for path, names in checkpoint.names_by_file().items():
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name in names:
                yield name, file.get_tensor(checkpoint.tensors[name].name)
