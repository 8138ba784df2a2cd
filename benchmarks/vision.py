"""Speed of the vision encoder on this CPU, packed and one by one.

    python -m benchmarks.vision [--quick] [--work DIR] [--repeats N] [--skip-peers]

The vision encoder of the published checkpoints (665 million parameters, random weights), float32, every
contestant in a process of its own on all cores:
- one picture of 5,168 patches (952 x 1064 pixels): ours, Transformers' tower with PyTorch SDPA, and ONNX
  Runtime on `torch.onnx.export(opset_version=23)` of that tower. All three get the same weights and patches;
  the table says how far each one's answer lies from PyTorch's.
- 24 pictures of 224 x 224 packed into one call, against the same pictures one call each: ours.
Seconds are the median of `--repeats` calls in a warm session; peak RSS is the process's.
`--quick` runs tiny shapes in seconds: it shows that the script works and measures nothing.
"""

import argparse
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.checkpoints import VISION_ONLY, add_work_option, checkpoint, exported
from benchmarks.measure import (
    Measurement,
    bytes_text,
    measure,
    print_table,
    ratio_text,
    seconds_text,
    time_calls,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Grids = list[list[int]]
"""Pictures as (t, h, w) in patches."""

ONE_LARGE: Grids = [[1, 68, 76]]  # 5,168 patches
MANY_SMALL: Grids = [[1, 16, 16]] * 24  # 224 x 224 pixels each
QUICK_LARGE: Grids = [[1, 8, 12]]
QUICK_SMALL: Grids = [[1, 4, 4]] * 4


def random_patches(grids: Grids, seed: int = 0) -> "npt.NDArray[np.float32]":
    """The same patches [P, 1176] for every contestant."""
    import numpy as np

    num_patches = sum(t * h * w for t, h, w in grids)
    return np.random.default_rng(seed).standard_normal((num_patches, 1176), dtype=np.float32)


def our_inputs(grids: Grids) -> tuple[Any, Any, Any]:
    """Patches, positions [2, P] in merge order (2 x 2 blocks) and cu_seqlens [N+1] of our contract."""
    import numpy as np

    positions, lengths = [], [0]
    for t, h, w in grids:
        rows_and_columns = np.indices((h, w), dtype=np.int32).reshape(2, h // 2, 2, w // 2, 2)
        merge_order = rows_and_columns.transpose(0, 1, 3, 2, 4).reshape(2, h * w)
        positions += [merge_order] * t
        lengths += [h * w] * t
    return random_patches(grids), np.concatenate(positions, 1), np.cumsum(lengths, dtype=np.int32)


# --- contestants: each runs in a child of its own ---------------------------------------------------


def run_ours(bundle: str, grids: Grids, repeats: int, answer: str) -> float:
    """Median seconds of a call."""
    import numpy as np

    from engines.backends.onnxruntime.session import OnnxRuntimeVision
    from export.bundle import open_bundle
    from export.inputs import VisionInputs

    session = OnnxRuntimeVision(open_bundle(Path(bundle)))
    inputs = VisionInputs.of(*our_inputs(grids))
    seconds, visual_embeds = time_calls(lambda: session.encode(inputs), repeats)
    np.save(answer, visual_embeds)
    return seconds


def run_ours_packed_and_alone(bundle: str, grids: Grids, repeats: int) -> dict[str, float]:
    """Median seconds of one packed call and of one call per picture all together; how far the answers differ."""
    import numpy as np

    from engines.backends.onnxruntime.session import OnnxRuntimeVision
    from export.bundle import open_bundle
    from export.inputs import VisionInputs

    session = OnnxRuntimeVision(open_bundle(Path(bundle)))
    patches, positions, cu_seqlens = our_inputs(grids)
    ranges = [slice(start, stop) for start, stop in pairwise(cu_seqlens.tolist())]
    alone = [
        VisionInputs.of(patches[one], positions[:, one], np.array([0, one.stop - one.start], np.int32))
        for one in ranges
    ]
    packed = VisionInputs.of(patches, positions, cu_seqlens)
    session.encode(alone[0])
    packed_seconds, packed_answer = time_calls(lambda: session.encode(packed), repeats)
    alone_seconds, answers = time_calls(lambda: [session.encode(inputs) for inputs in alone], repeats)
    difference = np.abs(packed_answer - np.concatenate(answers)).max() / np.abs(packed_answer).max()
    return {"packed": packed_seconds, "alone": alone_seconds, "difference": float(difference)}


def run_torch(source: str, grids: Grids, repeats: int, answer: str) -> float:
    """Transformers' tower with SDPA, its default attention on CPU."""
    import numpy as np
    import torch

    from benchmarks import peers

    tower = peers.VisionTower(peers.load_model(source, "float32").model.visual)
    _, position_ids, cu_seqlens = peers.vision_inputs(grids)
    patches = torch.from_numpy(random_patches(grids))
    with torch.inference_mode():
        seconds, visual_embeds = time_calls(lambda: tower(patches, position_ids, cu_seqlens), repeats)
    np.save(answer, visual_embeds.numpy())
    return seconds


def export_torch(source: str, graph: str) -> None:
    """torch.onnx.export with the ONNX Attention op (opset 23)."""
    from benchmarks import peers

    Path(graph).parent.mkdir(parents=True, exist_ok=True)
    peers.export_vision(peers.load_model(source, "float32"), Path(graph), "float32", opset=23)


def run_onnxruntime(graph: str, grids: Grids, repeats: int, answer: str) -> float:
    """ONNX Runtime with its default settings on torch's graph. No torch in the process."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    patches, positions, cu_seqlens = our_inputs(grids)
    position_ids = positions.T.astype(np.int64)
    feeds = {"patches": patches, "position_ids": position_ids, "cu_seqlens": cu_seqlens}
    seconds, outputs = time_calls(lambda: session.run(None, feeds), repeats)
    np.save(answer, outputs[0])
    return seconds


# --- the run ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What one invocation measures, from the command line."""

    work: Path
    large: Grids
    small: Grids
    repeats: int
    with_peers: bool

    def answer(self, name: str) -> Path:
        return self.work / "vision-answers" / f"{name}.npy"


def measure_large(run: Run, source: Path, bundle: Path) -> list[Measurement]:
    """The one large picture through every contestant."""
    common = {"grids": run.large, "repeats": run.repeats}
    runs = [measure("ours", run_ours, bundle=bundle, answer=run.answer("ours"), **common)]
    if run.with_peers:
        graph = run.work / "torch-vision-opset23" / "vision.onnx"
        runs.append(
            measure("PyTorch SDPA", run_torch, source=source, answer=run.answer("PyTorch SDPA"), **common)
        )
        measure("torch.onnx.export", export_torch, source=source, graph=graph)
        name = "ONNX Runtime, torch's graph"
        runs.append(measure(name, run_onnxruntime, graph=graph, answer=run.answer(name), **common))
        shutil.rmtree(graph.parent)
    return runs


def large_rows(run: Run, runs: list[Measurement]) -> list[list[str]]:
    """Table rows: time and memory of each, their ratio to ours, and the answer's distance from PyTorch's."""
    import numpy as np

    ours = runs[0]
    answers = [np.load(run.answer(each.name)) for each in runs]
    reference = answers[min(1, len(answers) - 1)]
    return [
        [
            each.name,
            seconds_text(each.result),
            bytes_text(each.peak_rss_bytes),
            ratio_text(each.result, ours.result),
            ratio_text(each.peak_rss_bytes, ours.peak_rss_bytes),
            f"{np.abs(answer - reference).max() / np.abs(reference).max():.1e}",
        ]
        for each, answer in zip(runs, answers, strict=True)
    ]


def packed_rows(packing: Measurement) -> list[list[str]]:
    packed, alone, difference = (packing.result[key] for key in ("packed", "alone", "difference"))
    memory = bytes_text(packing.peak_rss_bytes)
    return [
        ["one packed call", seconds_text(packed), memory, ratio_text(packed, alone), f"{difference:.1e}"],
        ["one call each, sum", seconds_text(alone), "", ratio_text(alone, alone), ""],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes, seconds")
    parser.add_argument("--skip-peers", action="store_true", help="measure ours alone")
    parser.add_argument("--repeats", type=int, default=3, help="calls per contestant (default: %(default)s)")
    add_work_option(parser)
    options = parser.parse_args()
    grids = (QUICK_LARGE, QUICK_SMALL) if options.quick else (ONE_LARGE, MANY_SMALL)
    run = Run(options.work.resolve(), *grids, options.repeats, not options.skip_peers)
    run.answer("").parent.mkdir(parents=True, exist_ok=True)
    size: dict[str, Any] = {"size": "tiny"} if options.quick else {"size": "2b", **VISION_ONLY}
    source = checkpoint(run.work, f"qwen2-vl-{size['size']}-vision-float32", dtype="float32", **size)
    bundle = exported(run.work, source, "float32")

    runs = measure_large(run, source, bundle)
    packing = measure(
        "ours, packed", run_ours_packed_and_alone, bundle=bundle, grids=run.small, repeats=run.repeats
    )
    patches = run.large[0][1] * run.large[0][2]
    header = (
        "vision, float32",
        "seconds a call",
        "peak RSS",
        "seconds / ours",
        "RSS / ours",
        "error to PyTorch",
    )
    print_table(f"One picture of {patches} patches", header, large_rows(run, runs))
    header_packed = ("vision, float32", "seconds", "peak RSS", "to one call each", "difference")
    print_table(
        f"{len(run.small)} pictures of {run.small[0][1:]} patches", header_packed, packed_rows(packing)
    )


if __name__ == "__main__":
    main()
