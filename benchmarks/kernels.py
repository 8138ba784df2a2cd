"""Speed of the kernels on this GPU, beside ceilings and alternatives measured in the same run.

    python -m benchmarks.kernels                all figures, with a verdict on each goal; exit status 1 if one is missed
    python -m benchmarks.kernels --dry-run      no GPU: small sizes, everything but the launches of our own PTX

Our contestants are the very PTX that goes into a TensorRT engine, launched through the driver with the plugin's own
grid, and the same kernel launched by Triton, which may use instructions (wgmma) that a plugin's PTX must not.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import print_table
from plugins.patch_attention import kernel as patch_attention_kernel
from plugins.patch_attention.reference import patch_attention_reference
from plugins.rotary import kernel as rotary_kernel
from plugins.rotary.reference import (
    mrope_axes,
    mrope_frequencies,
    patch_axes,
    patch_frequencies,
    rotary_reference,
)
from plugins.tensorrt import cuda_driver, ptx
from plugins.tensorrt.launch_ptx import Launch, patch_attention_launch, rotary_launch

ROTARY_GOAL = 0.85  # of the copy's bandwidth
MATMUL_GOAL = 0.45  # of the product's rate, one image of 16,384 patches
SEGMENTS = {
    "one image of 16,384": [16_384],
    "64 images of 256": [256] * 64,
    "twelve sizes": [64, 100, 144, 256, 324, 576, 784, 1024, 1600, 2304, 3600, 4900],
}
DRY_RUN_DIVISOR = 64
HEADS, HEAD_DIM = 16, 80


@dataclass(frozen=True)
class Row:
    """One measured contestant."""

    case: str
    contestant: str
    milliseconds: float
    rate: float
    """GB/s of a memory-bound case, TFLOP/s of another."""
    error: float | None
    """Largest difference from float64, over the largest value; None where another has it."""
    is_ours: bool = False


@dataclass(frozen=True)
class Machine:
    device: str
    compute_capability: int
    driver_cuda: str

    @property
    def is_dry_run(self) -> bool:
        return self.device == "cpu"


def milliseconds_of(call: Callable[[], Any], machine: Machine) -> float:
    """Median of some hundred calls, each with a cold L2 cache; in a dry run one call."""
    if machine.is_dry_run:
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    from triton.testing import do_bench

    return float(do_bench(call, warmup=50, rep=200, return_mode="median"))


def largest_error(result: Tensor, truth: Tensor) -> float:
    """NaN, as from an element that was never written, stays NaN and fails every comparison."""
    return float(((result.double() - truth).abs().max() / truth.abs().max()).item())


def run_launch(launch: Launch, machine: Machine) -> Callable[[], Any]:
    """What to time; in a dry run the assembler's verdict stands in for the launch."""
    if machine.is_dry_run:
        return lambda: ptx.assemble(launch.kernel, machine.compute_capability)
    loaded = launch.load()
    return lambda: launch.run(loaded)


# Rotary


def rotary_inputs(case: str, machine: Machine) -> list[Tensor]:
    """16,384 patches of the vision encoder, or tokens of the 7B decoder, at positions up to 120,000."""
    tokens = 16_384 // (DRY_RUN_DIVISOR if machine.is_dry_run else 1)
    heads, kv_heads, head_dim = (16, 16, 80) if case == "vision" else (28, 4, 128)
    generator = torch.Generator().manual_seed(0)
    q, k = (
        torch.randn(tokens, n, head_dim, generator=generator).to(torch.bfloat16) for n in (heads, kv_heads)
    )
    if case == "vision":
        positions = torch.randint(0, 128, (2, tokens), generator=generator, dtype=torch.int32)
        tables = patch_frequencies(head_dim), patch_axes(head_dim)
    else:
        positions = torch.randint(0, 120_000, (3, tokens), generator=generator, dtype=torch.int32)
        tables = mrope_frequencies(head_dim, 1e6), mrope_axes((16, 24, 24))
    return [x.to(machine.device) for x in (q, k, positions, *tables)]


def bench_rotary(case: str, machine: Machine) -> list[Row]:
    inputs = rotary_inputs(case, machine)
    q, k, positions, frequencies, axis_of = inputs
    moved_bytes = 2 * 2 * (q.numel() + k.numel())  # read and written, two bytes each
    angles = (positions[axis_of.long()].T.float() * frequencies).double()[:, None]
    first, second = q.double().chunk(2, -1)
    truth = torch.cat(
        (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), -1
    )
    rows = []

    def add(
        name: str, call: Callable[[], Any], result: Tensor | None = None, *, is_ours: bool = False
    ) -> None:
        milliseconds = milliseconds_of(call, machine)
        error = None if result is None else largest_error(result, truth)
        rate = moved_bytes / milliseconds / 1e6
        rows.append(Row(f"rotary, {case}", name, milliseconds, rate, error, is_ours))

    source = torch.empty(moved_bytes // 2, dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    add("copy of as many bytes (ceiling)", lambda: target.copy_(source))
    add("PyTorch reference", lambda: rotary_reference(*inputs), rotary_reference(*inputs)[0])
    for tile in rotary_kernel.TILES:
        launch = rotary_launch(inputs, tile, machine.compute_capability, machine.driver_cuda)
        call = run_launch(launch, machine)
        call()
        add(f"PTX {tile}", call, None if machine.is_dry_run else launch.outputs[0], is_ours=True)
    if not machine.is_dry_run:

        def by_triton() -> Tensor:
            return rotary_kernel.launch(q, k, positions, frequencies, axis_of)[0]

        add("Triton's launch", by_triton, by_triton())
    return rows


# Patch attention


def attention_inputs(lengths: list[int], machine: Machine) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    offsets = [0, *itertools.accumulate(lengths)]
    q, k, v = (
        torch.randn(offsets[-1], HEADS, HEAD_DIM, generator=generator).to(torch.bfloat16) for _ in range(3)
    )
    indices = [torch.tensor(offsets, dtype=torch.int32), torch.arange(max(lengths), dtype=torch.int32)]
    return [x.to(machine.device) for x in (q, k, v, *indices)]


def sdpa_per_image(inputs: list[Tensor], lengths: list[int]) -> Tensor:
    """PyTorch's fused attention, called once for each image, in the inputs' dtype."""
    parts = [x.split(lengths) for x in inputs[:3]]
    attended = [
        F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in image))[0].transpose(0, 1)
        for image in zip(*parts, strict=True)
    ]
    return torch.cat(attended)


def varlen_attention(inputs: list[Tensor], longest: int) -> Callable[[], Tensor]:
    """PyTorch's variable-length flash attention."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v, offsets, _ = inputs

    def attend() -> Tensor:
        attended = varlen_attn(q, k, v, offsets, offsets, longest, longest)
        assert isinstance(attended, Tensor)
        return attended

    return attend


def flex_attention(inputs: list[Tensor], lengths: list[int], machine: Machine) -> Callable[[], Tensor]:
    """FlexAttention with a block mask of equal segments; compiled, the mask made once."""
    from torch.nn.attention import flex_attention as flex

    q, k, v = (x.transpose(0, 1)[None] for x in inputs[:3])
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(machine.device)
    size = q.shape[2]
    mask = flex.create_block_mask(
        lambda _b, _h, query, key: segment[query] == segment[key], None, None, size, size, machine.device
    )
    attend: Any = flex.flex_attention if machine.is_dry_run else torch.compile(flex.flex_attention)
    return lambda: attend(q, k, v, block_mask=mask)[0].transpose(0, 1)


def attention_in_float64(inputs: list[Tensor], lengths: list[int]) -> Tensor:
    """One head at a time: the scores of 16,384 patches take 2 GB."""
    offsets = itertools.pairwise([0, *itertools.accumulate(lengths)])
    result = torch.empty_like(inputs[0], dtype=torch.float64)
    for (start, end), head in itertools.product(list(offsets), range(HEADS)):
        q, k, v = (x[start:end, head].double() for x in inputs[:3])
        result[start:end, head] = torch.softmax(q @ k.T * HEAD_DIM**-0.5, -1) @ v
    return result


def bench_attention(case: str, machine: Machine) -> list[Row]:
    lengths = SEGMENTS[case]
    if machine.is_dry_run:
        lengths = [max(4, length // DRY_RUN_DIVISOR) for length in lengths]
    inputs = attention_inputs(lengths, machine)
    flop = 4 * HEADS * HEAD_DIM * sum(length**2 for length in lengths)
    truth = attention_in_float64(inputs, lengths)
    rows = []

    def add(name: str, call: Callable[[], Any], result: Tensor | None, *, is_ours: bool = False) -> None:
        milliseconds = milliseconds_of(call, machine)
        error = None if result is None else largest_error(result, truth)
        rate = flop / milliseconds / 1e9
        rows.append(Row(f"attention, {case}", name, milliseconds, rate, error, is_ours))

    contestants: dict[str, Callable[[], Callable[[], Tensor]]] = {
        "PyTorch reference (float32)": lambda: lambda: patch_attention_reference(*inputs),
        "SDPA per image": lambda: lambda: sdpa_per_image(inputs, lengths),
        "FlexAttention": lambda: flex_attention(inputs, lengths, machine),
        "variable-length flash": lambda: varlen_attention(inputs, max(lengths)),
    }
    for name, prepare in contestants.items():
        if machine.is_dry_run and name == "variable-length flash":
            continue  # has no CPU kernel
        try:
            call = prepare()
            result = call()
        except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
            # An alternative that does not run here cannot be the fastest; the others still say something.
            print(f"{case}: {name} does not run: {str(error).splitlines()[:1]}", file=sys.stderr)
        else:
            add(name, call, result)
    for tile in patch_attention_kernel.tiles(HEAD_DIM, 2):
        launch = patch_attention_launch(inputs, tile, machine.compute_capability, machine.driver_cuda)
        ours = run_launch(launch, machine)
        ours()
        add(f"PTX {tile}", ours, None if machine.is_dry_run else launch.outputs[0], is_ours=True)
    if not machine.is_dry_run:
        for tile in patch_attention_kernel.tiles(HEAD_DIM, 2):
            by_triton = _triton_launch(inputs, tile)
            add(f"Triton's launch {tile}", by_triton, by_triton())
    return rows


def _triton_launch(inputs: list[Tensor], tile: patch_attention_kernel.Tile) -> Callable[[], Tensor]:
    q, k, v, cu_seqlens, segment_range = inputs
    return lambda: patch_attention_kernel.launch(q, k, v, cu_seqlens, segment_range, tile=tile)


def bench_matmul(machine: Machine) -> Row:
    size = 8192 // (DRY_RUN_DIVISOR if machine.is_dry_run else 1)
    a, b = (torch.randn(size, size, device=machine.device).to(torch.bfloat16) for _ in range(2))
    milliseconds = milliseconds_of(lambda: a @ b, machine)
    return Row(
        "matmul", f"{size} x {size} bf16 (ceiling)", milliseconds, 2 * size**3 / milliseconds / 1e9, None
    )


# Verdict


def verdicts(rows: list[Row], matmul_rate: float) -> list[tuple[str, bool]]:
    """Each goal of the kernels, and whether this run reached it."""
    results = []
    for case, group in itertools.groupby(rows, lambda row: row.case):
        contestants = list(group)
        ours = min((row for row in contestants if row.is_ours), key=lambda row: row.milliseconds)
        others = [row for row in contestants if not row.is_ours and "Triton" not in row.contestant]
        if case.startswith("rotary"):
            ceiling = next(row for row in others if "ceiling" in row.contestant)
            share = ours.rate / ceiling.rate
            results.append((f"{case}: {share:.0%} of copy, goal {ROTARY_GOAL:.0%}", share >= ROTARY_GOAL))
        else:
            fastest = min(others, key=lambda row: row.milliseconds)
            ratio = fastest.milliseconds / ours.milliseconds
            results.append((f"{case}: {ratio:.2f} times as fast as {fastest.contestant}", ratio >= 1))
            if "16,384" in case:
                share = ours.rate / matmul_rate
                results.append(
                    (f"{case}: {share:.0%} of matmul, goal {MATMUL_GOAL:.0%}", share >= MATMUL_GOAL)
                )
        errors = [row.error for row in contestants if row.is_ours and row.error is not None]
        allowed = 2 * statistics.median([row.error for row in others if row.error is not None])
        if errors:
            text = f"{case}: error {max(errors):.1e}, allowed twice the alternatives' {allowed:.1e}"
            results.append((text, all(error <= allowed for error in errors)))
    return results


def find_machine(*, is_dry_run: bool) -> Machine:
    if is_dry_run:
        return Machine("cpu", 90, "13.0")
    torch.cuda.init()
    return Machine("cuda", cuda_driver.compute_capability(), cuda_driver.driver_cuda_version())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="small sizes on CPU, no figures")
    machine = find_machine(is_dry_run=parser.parse_args().dry_run)
    matmul = bench_matmul(machine)
    rows = [row for case in ("vision", "M-RoPE of 7B") for row in bench_rotary(case, machine)]
    rows += [row for case in SEGMENTS for row in bench_attention(case, machine)]
    if machine.is_dry_run:
        verdicts(rows, matmul.rate)  # must run, and means nothing
        print("\nDry run: all of these started; nothing was timed, and no PTX was launched.\n")
        print(*(f"{row.case}: {row.contestant}" for row in [matmul, *rows]), sep="\n")
        return 0
    print_table(
        f"Kernels on {torch.cuda.get_device_name()}, {machine}",
        ("case", "contestant", "ms", "GB/s or TFLOP/s", "error"),
        [
            (row.case, row.contestant, f"{row.milliseconds:.3f}", f"{row.rate:.0f}", _error_text(row.error))
            for row in [matmul, *rows]
        ],
    )
    results = verdicts(rows, matmul.rate)
    for text, is_reached in results:
        print(("reached  " if is_reached else "MISSED   ") + text)
    return 0 if all(is_reached for _, is_reached in results) else 1


def _error_text(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}"


if __name__ == "__main__":
    sys.exit(main())
