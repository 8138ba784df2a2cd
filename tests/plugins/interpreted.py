"""The kernels in Triton's interpreter, on CPU, against float64.

Triton decides at import whether it interprets, so this runs in its own process: `run_interpreted` starts it, hands it
cases as JSON and returns one result a case. Outputs start as NaN: an element that no program writes shows.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]

UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def run_interpreted(op: str, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of `cases` of an op, "rotary" or another folder's name: {"error": relative, "unwritten": count}."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.plugins.interpreted", op, json.dumps(cases)],
        cwd=REPOSITORY,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    results: list[dict[str, Any]] = json.loads(result.stdout)
    return results


def failures(
    cases: list[dict[str, Any]], results: list[dict[str, Any]], tolerances: dict[str, float]
) -> list[str]:
    """One line for each case that is off; a comparison with NaN fails too."""
    return [
        f"{case} -> {result}, tolerance {tolerances[case['dtype']]:.1e}"
        for case, result in zip(cases, results, strict=True)
        if result["unwritten"] or not result["error"] <= tolerances[case["dtype"]]
    ]


def _mend_bfloat16() -> None:
    """Triton 3.9's interpreter keeps bfloat16 as uint16, and multiplies matrices of those; and it truncates.

    A GPU multiplies the values and rounds to nearest, ties to even: so do these two.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    class_ = interpreter.InterpreterBuilder
    dot, cast = class_.create_dot, class_.cast_impl

    def widen(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        values = (x.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(values, tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widen(a), widen(b), *rest)

    def cast_impl(self: Any, source: Any, dst_type: Any) -> Any:
        if (source.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, dst_type)
        bits = np.ascontiguousarray(source.data, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        quiet_nan = np.isnan(source.data)
        return interpreter.TensorHandle(np.where(quiet_nan, 0x7FC0, rounded).astype(np.uint16), tl.bfloat16)

    class_.create_dot = create_dot
    class_.cast_impl = class_.create_fp_trunc = cast_impl


def _run_rotary(case: dict[str, Any]) -> dict[str, Any]:
    import torch

    from plugins.rotary import kernel, reference

    generator = torch.Generator().manual_seed(case["tokens"])
    tokens, (heads, kv_heads), head_dim = case["tokens"], case["heads"], case["head_dim"]
    dtype = getattr(torch, case["dtype"])
    q = torch.randn(tokens, heads, head_dim, generator=generator).to(dtype)
    k = torch.randn(tokens, kv_heads, head_dim, generator=generator).to(dtype)
    positions = torch.randint(
        0, case["max_position"] + 1, (case["axes"], tokens), generator=generator, dtype=torch.int32
    )
    positions[:, -1] = case["max_position"]
    frequencies = reference.mrope_frequencies(head_dim, 1e6)
    axis_of = torch.randint(0, case["axes"], (head_dim // 2,), generator=generator, dtype=torch.int32)
    outputs = (torch.full_like(q, torch.nan), torch.full_like(k, torch.nan))
    kernel.launch(
        q, k, positions, frequencies, axis_of, tile=kernel.TILES[case.get("tile", 0)], outputs=outputs
    )
    # The op's angle is a float32 product; everything after it is exact here.
    angles = (positions[axis_of.long()].T.float() * frequencies).double()[:, None]
    error = 0.0
    for x, rotated in zip((q, k), outputs, strict=True):
        first, second = x.double().chunk(2, -1)
        truth = torch.cat(
            (
                first * angles.cos() - second * angles.sin(),
                second * angles.cos() + first * angles.sin(),
            ),
            -1,
        )
        radius = torch.hypot(first, second).repeat(1, 1, 2)  # what a rotation keeps
        error = max(error, ((rotated.double() - truth).abs() / radius).max().item())
    return {"error": error, "unwritten": sum(int(x.isnan().sum()) for x in outputs)}


def _run_patch_attention(case: dict[str, Any]) -> dict[str, Any]:
    import torch

    from plugins.patch_attention import kernel

    lengths, heads, head_dim = case["lengths"], case["heads"], case["head_dim"]
    generator = torch.Generator().manual_seed(len(lengths))
    dtype = getattr(torch, case["dtype"])
    offsets = [0, *itertools.accumulate(lengths)]
    q, k, v = (
        torch.randn(offsets[-1], heads, head_dim, generator=generator).to(dtype) * case.get("scale", 1)
        for _ in range(3)
    )
    poisoned = case.get("poisoned")
    if poisoned is not None:
        for x in (q, k, v):
            x[offsets[poisoned] : offsets[poisoned + 1]] = torch.nan
    choices = kernel.tiles(head_dim, q.element_size())
    attended = torch.full_like(q, torch.nan)
    kernel.launch(
        q,
        k,
        v,
        torch.tensor(offsets, dtype=torch.int32),
        torch.arange(max(lengths), dtype=torch.int32),
        tile=choices[case["tile"]] if "tile" in case else None,
        attended=attended,
    )
    error, unwritten = 0.0, 0
    for segment, (start, end) in enumerate(itertools.pairwise(offsets)):
        if segment == poisoned:
            continue
        q64, k64, v64 = (x[start:end].double().transpose(0, 1) for x in (q, k, v))
        truth = torch.softmax(q64 @ k64.mT * head_dim**-0.5, -1) @ v64
        difference = attended[start:end].double().transpose(0, 1) - truth
        unwritten += int(difference.isnan().sum())
        error = max(error, (difference.abs().max() / v64.abs().max()).item())
    return {"error": error, "unwritten": unwritten}


def _run_cached_attention(case: dict[str, Any]) -> dict[str, Any]:
    """A call that brings the caches to `lengths`, a sequence each; what no row may see is NaN."""
    import torch

    from plugins.cached_attention import kernel

    lengths, (heads, kv_heads), head_dim = case["lengths"], case["heads"], case["head_dim"]
    queries = case.get("queries", [1] * len(lengths))  # valid tokens of each sequence
    generator = torch.Generator().manual_seed(lengths[0])
    dtype = getattr(torch, case["dtype"])
    num_queries, capacity = max(queries), case.get("capacity", max(lengths) + max(queries))
    q = torch.randn(len(lengths), num_queries, heads, head_dim, generator=generator).to(dtype)
    q *= case.get("scale", 1)
    key, value = (
        torch.full((len(lengths), kv_heads, capacity, head_dim), torch.nan).to(dtype) for _ in range(2)
    )
    for i, length in enumerate(lengths):
        for cache in (key, value):
            cache[i, :, :length] = torch.randn(kv_heads, length, head_dim, generator=generator).to(dtype)
    splits = kernel.num_splits(num_queries)
    shape = (len(lengths), num_queries, heads, splits)
    partials = (torch.full((*shape, head_dim), torch.nan), torch.full(shape, torch.nan))
    attended = torch.full_like(q, torch.nan)
    write_index = torch.tensor(lengths) - torch.tensor(queries)
    choices = kernel.tiles(q.element_size())
    kernel.launch(
        q, key, value, write_index, torch.tensor(lengths, dtype=torch.int32),
        tile=choices[case["tile"]] if "tile" in case else None, partials=partials, attended=attended,
    )  # fmt: skip
    error = 0.0
    for i, (length, valid) in enumerate(zip(lengths, queries, strict=True)):
        q64 = q[i, :valid].double().transpose(0, 1)  # [H, S, D]
        k64, v64 = (x[i, :, :length].double().repeat_interleave(heads // kv_heads, 0) for x in (key, value))
        scores = q64 @ k64.mT * head_dim**-0.5
        visible = torch.arange(length) <= (length - valid + torch.arange(valid))[:, None]
        truth = torch.softmax(scores.masked_fill(~visible, -torch.inf), -1) @ v64
        difference = (attended[i, :valid].double().transpose(0, 1) - truth).abs().max() / v64.abs().max()
        error = max(error, difference.item())
    return {"error": error, "unwritten": int(attended.isnan().sum())}


if __name__ == "__main__":
    _mend_bfloat16()
    _run = {
        "rotary": _run_rotary,
        "patch_attention": _run_patch_attention,
        "cached_attention": _run_cached_attention,
    }[sys.argv[1]]
    sys.stdout.write(json.dumps([_run(case) for case in json.loads(sys.argv[2])]))
