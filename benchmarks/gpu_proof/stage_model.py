"""Stages on the whole model: the reference on the GPU against the CPU, and its speed beside Transformers'."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_proof.results import Finding
from benchmarks.gpu_proof.settings import SMALL_CHECKPOINT, Settings, Skipped, first_line
from examples.random_checkpoint import SIZES, published_config
from export.checkpoint.config import config_from_json
from export.models.qwen2_vl.model import KvCache, Qwen2VL, load_reference

Step = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def reference(settings: Settings) -> list[Finding]:
    """The small trained checkpoint, prefill and a step: the device in each dtype against float32 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    truth = _small_logits(torch.float32, "cpu", generator)
    found = []
    for name in ("float32", "bfloat16", "float16"):
        logits = _small_logits(getattr(torch, name), settings.device, generator.manual_seed(0))
        error = ((logits - truth).abs().max() / truth.abs().max()).item()
        agree = (logits.argmax(-1) == truth.argmax(-1)).float().mean().item()
        note = f"{agree:.1%} of greedy tokens agree"
        found.append(
            Finding("small checkpoint, logits", f"{name} on {settings.device}", None, "", error, note)
        )
    return found


@torch.no_grad()
def _small_logits(dtype: torch.dtype, device: str, generator: torch.Generator) -> Tensor:
    generator.manual_seed(0)
    model = load_reference(SMALL_CHECKPOINT, dtype, device)
    tokens = torch.randint(0, 256, (2, 25), generator=generator)
    cache = model.new_cache(2, 64)
    first = decoder_call(model, tokens[:, :24].to(device), 0)
    logits, cache = model.decode(*first, cache)
    second, _ = model.decode(*decoder_call(model, tokens[:, 24:].to(device), 24), cache)
    return torch.cat([logits, second], 1).cpu()


def decoder_call(model: Qwen2VL, tokens: Tensor, start: int) -> Step:
    """Inputs of `Qwen2VL.decode` for the tokens from `start` on, every one projected in a small call, the last else."""
    batch, length = tokens.shape
    places = torch.arange(start, start + length, device=tokens.device, dtype=torch.int32)
    write_index = torch.full((batch,), start, device=tokens.device)
    index = (
        torch.arange(length, device=tokens.device)
        if length < 64
        else torch.tensor([length - 1], device=tokens.device)
    )
    no_pictures = model.lm_head.weight.new_zeros((0, model.config.decoder.hidden_size))
    return (
        tokens, no_pictures, places.expand(3, batch, length), write_index, write_index + length,
        index.expand(batch, -1),
    )  # fmt: skip


def random_model(settings: Settings) -> Qwen2VL:
    """Of 2B's sizes, or tiny ones in a dry run, bfloat16, weights made on the device."""
    sizes = SIZES["tiny" if settings.is_dry_run else "2b"]
    config = config_from_json(json.loads(json.dumps(published_config(sizes, "bfloat16"))))
    with torch.device("meta"):
        model = Qwen2VL(config)
    model = model.to(torch.bfloat16).to_empty(device=settings.device)
    torch.manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.02) if weight.dim() > 1 else torch.nn.init.ones_(weight)
    if config.decoder.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval().requires_grad_(False)


@torch.no_grad()
def speed(settings: Settings) -> list[Finding]:
    """Decode at batch 1, 8, 32 and context 512, 8,192; prefill; vision at 1, 4 and 16 thousand patches."""
    model = random_model(settings)
    contexts = (settings.size(512, 8), settings.size(8192, 16))
    found = [_decode_rate(settings, model, batch, context) for context in contexts for batch in (1, 8, 32)]
    tokens = torch.zeros((1, settings.size(2048, 70)), dtype=torch.long, device=settings.device)
    cache = model.new_cache(1, tokens.shape[1])
    milliseconds = settings.milliseconds(lambda: model.decode(*decoder_call(model, tokens, 0), cache), 5)
    rate = 1e3 * tokens.shape[1] / milliseconds
    found.append(Finding(f"prefill of {tokens.shape[1]:,}", "reference with our kernels", rate, "tokens/s"))
    sizes = [settings.size(patches, patches // 64) for patches in (1024, 4096, 16_384)]
    return found + [_vision_rate(settings, model, patches) for patches in sizes]


def _decode_rate(settings: Settings, model: Qwen2VL, batch: int, context: int) -> Finding:
    cache: KvCache = model.new_cache(batch, context)
    tokens = torch.zeros((batch, 1), dtype=torch.long, device=settings.device)
    inputs = decoder_call(model, tokens, context - 1)
    milliseconds = settings.milliseconds(lambda: model.decode(*inputs, cache))
    case = f"decode, batch {batch}, context {context:,}"
    return Finding(case, "reference with our kernels", 1e3 * batch / milliseconds, "tokens/s")


def _vision_rate(settings: Settings, model: Qwen2VL, num_patches: int) -> Finding:
    side = int(num_patches**0.5)
    patches = torch.randn(side * side, 1176, device=settings.device).to(torch.bfloat16)
    rows, columns = torch.meshgrid(
        *(torch.arange(side, device=settings.device, dtype=torch.int32),) * 2, indexing="ij"
    )
    positions = torch.stack([rows.flatten(), columns.flatten()])
    offsets = torch.tensor([0, side * side], device=settings.device, dtype=torch.int32)
    milliseconds = settings.milliseconds(lambda: model.encode(patches, positions, offsets), 5)
    return Finding(
        f"one picture of {side * side:,} patches", "reference with our kernels", milliseconds, "ms"
    )


@torch.no_grad()
def transformers_speed(settings: Settings) -> list[Finding]:
    """Transformers' decoder of the same sizes with a static cache and `torch.compile`, the same cases."""
    try:
        import transformers
    except ImportError as error:
        raise Skipped("needs the package transformers") from error
    sizes = SIZES["tiny" if settings.is_dry_run else "2b"]
    if settings.is_dry_run:
        sizes = replace(sizes, num_hidden_layers=1)
    text: Any = transformers.Qwen2VLConfig(**published_config(sizes, "bfloat16")).get_text_config()
    with torch.device(settings.device):
        model: Any = transformers.Qwen2VLTextModel(text).eval()
    model.to(torch.bfloat16)
    found = []
    for context in (settings.size(512, 8), settings.size(8192, 16)):
        for batch in (1, 8, 32):
            case = f"decode, batch {batch}, context {context:,}"
            try:
                found.append(_transformers_rate(settings, model, text, case, batch, context))
            except (RuntimeError, TypeError, ValueError) as error:
                found.append(Finding(case, "Transformers", None, "", note=first_line(error)))
    return found


def _transformers_rate(
    settings: Settings, model: Any, text: Any, case: str, batch: int, context: int
) -> Finding:
    from transformers import StaticCache

    cache = StaticCache(config=text, max_cache_len=context)
    place = torch.tensor([context - 1], device=settings.device)
    embeds = torch.zeros((batch, 1, text.hidden_size), dtype=torch.bfloat16, device=settings.device)
    positions = place.expand(3, batch, 1)

    def step() -> None:
        model(inputs_embeds=embeds, position_ids=positions, past_key_values=cache, cache_position=place)

    call: Callable[[], None] = step if settings.is_dry_run else torch.compile(step, mode="reduce-overhead")
    for _ in range(3):
        call()
    rate = 1e3 * batch / settings.milliseconds(call)
    return Finding(case, "Transformers, static cache, compiled (no vocabulary projection)", rate, "tokens/s")
