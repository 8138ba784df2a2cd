"""Stages on the kernels alone: speed beside ceilings and peers, errors against float64, and PTX through the driver."""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import kernels as bench
from benchmarks.gpu_proof.results import Finding
from benchmarks.gpu_proof.settings import Settings, first_line
from plugins.cached_attention import kernel as cached_kernel
from plugins.cached_attention.reference import attend
from plugins.tensorrt import ptx
from plugins.tensorrt.launch_ptx import cached_attention_launches

HEADS, KV_HEADS, HEAD_DIM = 12, 2, 128
LOADS = 50


def rotary_and_patches(settings: Settings) -> list[Finding]:
    """`benchmarks.kernels` whole, with its verdicts as notes."""
    machine = bench.find_machine(is_dry_run=settings.is_dry_run)
    matmul = bench.bench_matmul(machine)
    rows = [row for case in ("vision", "M-RoPE of 7B") for row in bench.bench_rotary(case, machine)]
    rows += [row for case in bench.SEGMENTS for row in bench.bench_attention(case, machine)]
    found = [
        Finding(row.case, row.contestant, row.rate, "GB/s" if "rotary" in row.case else "TFLOP/s", row.error)
        for row in [matmul, *rows]
    ]
    for text, is_reached in bench.verdicts(rows, matmul.rate):
        found.append(Finding("goal", "", None, "", note=("reached: " if is_reached else "MISSED: ") + text))
    return found


def cached_attention(settings: Settings) -> list[Finding]:
    """Decode steps and a prefill over a cache, beside SDPA on the valid part; rates of the bytes that must be read."""
    found = [_copy_rate(settings)]
    for batch, length, capacity, tokens in (
        (1, 4096, 32_768, 1),
        (8, 4096, 32_768, 1),
        (1, 32_768, 32_768, 1),
        (1, 131_072, 131_072, 1),
        (1, 8192, 8192, 2048),
    ):
        sizes = (
            settings.size(length, 100),
            settings.size(capacity, 128),
            settings.size(tokens, min(tokens, 3)),
        )
        found += _one_cache(settings, batch, *sizes)
    return found


def _one_cache(settings: Settings, batch: int, length: int, capacity: int, tokens: int) -> list[Finding]:
    case = f"batch {batch}, {tokens} new of {length:,} tokens, capacity {capacity:,}"
    inputs = cache_inputs(settings.device, batch, length, capacity, tokens)
    q, key, value, write_index, kv_lengths = inputs
    truth = float64_attention(q, key[:, :, :length], value[:, :, :length])
    read_bytes = 2 * 2 * batch * KV_HEADS * length * HEAD_DIM
    visible = (
        torch.arange(length, device=q.device)
        <= length - tokens + torch.arange(tokens, device=q.device)[:, None]
    )

    def by_sdpa() -> Tensor:
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2), key[:, :, :length], value[:, :, :length],
            attn_mask=None if tokens == 1 else visible, enable_gqa=True,
        )  # fmt: skip
        return attended.transpose(1, 2)

    calls: dict[str, Callable[[], Tensor]] = {"SDPA on the valid part": by_sdpa}
    if settings.is_dry_run:
        calls["reference in place of the kernel"] = lambda: attend(*inputs)
    else:
        calls["Triton's launch"] = lambda: cached_kernel.launch(q, key, value, write_index, kv_lengths)
        calls |= _ptx_calls(inputs)
    found = []
    for name, call in calls.items():
        try:
            error = bench.largest_error(call(), truth)
            rate = read_bytes / settings.milliseconds(call) / 1e6
        except RuntimeError as problem:
            found.append(Finding(case, name, None, "", note=first_line(problem)))
        else:
            found.append(Finding(case, name, rate, "GB/s", error))
    return found


def _ptx_calls(inputs: list[Tensor]) -> dict[str, Callable[[], Tensor]]:
    """The plugins' own PTX, each tile, through the driver."""
    return {f"PTX {tile}": _ptx_call(inputs, tile) for tile in cached_kernel.tiles(2)}


def _ptx_call(inputs: list[Tensor], tile: cached_kernel.Tile) -> Callable[[], Tensor]:
    machine = bench.find_machine(is_dry_run=False)
    first, second = cached_attention_launches(inputs, tile, machine.compute_capability, machine.driver_cuda)
    partials, combine = first.load(), second.load()

    def attend_by_ptx() -> Tensor:
        first.run(partials)
        (attended,) = second.run(combine)
        return attended

    return attend_by_ptx


def cache_inputs(device: str, batch: int, length: int, capacity: int, tokens: int) -> list[Tensor]:
    """q, key, value, write_index, kv_lengths of 2B in bfloat16."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator).to(torch.bfloat16)

    cache = (batch, KV_HEADS, capacity, HEAD_DIM)
    kv_lengths = torch.full((batch,), length, device=device, dtype=torch.int32)
    return [
        normal(batch, tokens, HEADS, HEAD_DIM),
        normal(*cache),
        normal(*cache),
        kv_lengths - tokens,
        kv_lengths,
    ]


def float64_attention(q: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal at the lower right; one head at a time, for scores of 2,048 by 8,192 in float64 take 134 MB."""
    tokens, length, group = q.shape[1], key.shape[2], q.shape[2] // key.shape[1]
    hidden = torch.arange(length, device=q.device) > (
        length - tokens + torch.arange(tokens, device=q.device)[:, None]
    )
    result = torch.empty_like(q, dtype=torch.float64)
    for head in range(q.shape[2]):
        k, v = (x[:, head // group].double() for x in (key, value))
        scores = q[:, :, head].double() @ k.mT * q.shape[3] ** -0.5
        result[:, :, head] = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1) @ v
    return result


def _copy_rate(settings: Settings) -> Finding:
    source = torch.empty(settings.size(2**30, 2**16), dtype=torch.uint8, device=settings.device)
    target = torch.empty_like(source)
    rate = 2 * source.numel() / settings.milliseconds(lambda: target.copy_(source)) / 1e6
    return Finding("ceiling", "copy, read and written", rate, "GB/s")


def driver(settings: Settings) -> list[Finding]:
    """What loading a module costs: an ahead-of-time plugin loads one at every change of shape or address."""
    inputs = cache_inputs(settings.device, 1, 100, 128, 1)
    found = []
    for sm in (80, 90):
        first, second = cached_attention_launches(inputs, cached_kernel.tiles(2)[0], sm, "13.0")
        for launch in (first, second):
            resources = dataclasses.asdict(ptx.assemble(launch.kernel, max(sm, 90)))
            note = ", ".join(f"{name} {value}" for name, value in resources.items())
            found.append(Finding(f"PTX for sm_{sm}", launch.kernel.name, None, "", note=note))
    if not settings.is_dry_run:
        torch.zeros(1, device="cuda")
        free, _ = torch.cuda.mem_get_info()
        load = settings.milliseconds(first.load, LOADS)
        kept = (free - torch.cuda.mem_get_info()[0]) / LOADS
        found.append(
            Finding("module load", first.kernel.name, load, "ms", note=f"{kept:,.0f} B stay each time")
        )
    return found
