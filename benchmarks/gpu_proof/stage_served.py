"""The stage on a served model of real size: 2B of random weights, bfloat16, ONNX Runtime against the reference."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_proof.results import Finding
from benchmarks.gpu_proof.settings import Settings, Skipped
from benchmarks.gpu_proof.stage_model import decoder_call
from examples.random_checkpoint import write_checkpoint
from export.bundle import open_bundle
from export.exporter import export_checkpoint
from export.inputs import DecoderInputs, VisionInputs
from export.models.qwen2_vl.model import load_reference

TARGET = "onnxruntime-cuda"
NUM_TOKENS, NUM_SLOTS = 48, 8
Array = np.ndarray[Any, np.dtype[np.float32]]


def served(settings: Settings) -> list[Finding]:
    """Errors of vision and decoder beside those of the reference in bfloat16, and the speed of steps.

    In a dry run a small model, and the target's own code on a device that is the CPU.
    """
    from engines.backends import BACKENDS

    if not settings.is_dry_run and (missing := BACKENDS[TARGET].missing()):
        raise Skipped(missing)
    from engines.backends.onnxruntime_cuda.device import Device
    from engines.backends.onnxruntime_cuda.session import open_sessions

    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, directory = Path(scratch) / "checkpoint", Path(scratch) / "bundle"
        write_checkpoint(checkpoint, size="tiny" if settings.is_dry_run else "2b")
        export_checkpoint(checkpoint, directory, weights="link")
        bundle = open_bundle(directory)
        capacity = settings.size(1024, 64)
        device = Device("cpu" if settings.is_dry_run else "cuda")
        vision, decoder = open_sessions(bundle, device, num_slots=NUM_SLOTS, capacity=capacity)
        model = bundle.config
        random = np.random.default_rng(0)
        side = settings.size(32, 8)
        pictures = _one_picture(random, side, model.vision.patch_values)
        tokens = random.integers(0, model.decoder.vocab_size * 9 // 10, (1, NUM_TOKENS))
        prefill, empty = slice(0, NUM_TOKENS - 1), np.zeros((0, model.decoder.hidden_size), np.float32)
        found = np.concatenate(
            [
                decoder.forward(0, _call(tokens[:, part], part.start, empty))
                for part in (prefill, slice(NUM_TOKENS - 1, NUM_TOKENS))
            ],
            axis=1,
        )
        embeds = vision.encode(pictures)
        expected = _by_reference(checkpoint, torch.float32, settings.device, tokens, pictures)
        rounded = _by_reference(checkpoint, torch.bfloat16, settings.device, tokens, pictures)
        findings = [
            _compared(what, *arrays)
            for what, arrays in (
                ("logits of a prompt and a step", (found, expected[0], rounded[0])),
                (f"one image of {side * side:,} patches", (embeds, expected[1], rounded[1])),
            )
        ]
        return findings + [_rate(settings, decoder, empty, rows) for rows in (1, NUM_SLOTS)]


def _one_picture(random: np.random.Generator, side: int, patch_values: int) -> VisionInputs:
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    positions = np.stack([rows.ravel(), columns.ravel()]).astype(np.int32)
    patches = random.standard_normal((side * side, patch_values)).astype(np.float32)
    return VisionInputs.of(patches, positions, np.array([0, side * side], np.int32))


def _call(tokens: np.ndarray[Any, np.dtype[np.int64]], start: int, embeds: Array) -> DecoderInputs:
    rows, length = tokens.shape
    places = np.arange(start, start + length, dtype=np.int32)
    write_index = np.full(rows, start, np.int64)
    return DecoderInputs(
        tokens,
        embeds,
        np.ascontiguousarray(np.broadcast_to(places, (3, rows, length))),
        write_index,
        write_index + length,
        np.ascontiguousarray(np.broadcast_to(np.arange(length), (rows, length))),
    )


@torch.no_grad()
def _by_reference(
    checkpoint: Path,
    dtype: torch.dtype,
    device: str,
    tokens: np.ndarray[Any, np.dtype[np.int64]],
    pictures: VisionInputs,
) -> tuple[Array, Array]:
    """Logits [1, S, vocab] and visual tokens [V, C]."""
    model = load_reference(checkpoint, dtype, device)
    ids = torch.from_numpy(tokens).to(device)
    logits, _ = model.decode(*decoder_call(model, ids, 0), model.new_cache(1, tokens.shape[1]))
    inputs = (torch.from_numpy(array).to(device) for array in (pictures.positions, pictures.cu_seqlens))
    embeds = model.encode(torch.from_numpy(pictures.patches).to(device, dtype), *inputs)
    return logits.float().cpu().numpy(), embeds.float().cpu().numpy()


def _compared(what: str, found: Array, expected: Array, rounded: Array) -> Finding:
    largest = np.abs(expected).max()
    error, own = (float(np.abs(one - expected).max() / largest) for one in (found, rounded))
    note = f"the reference's own in bfloat16: {own:.1e}"
    return Finding(f"2B of random weights, {what}", TARGET, None, "", error, note)


def _rate(settings: Settings, decoder: Any, embeds: Array, rows: int) -> Finding:
    step = _call(np.zeros((rows, 1), np.int64), decoder.capacity - 1, embeds)
    nothing_asked = np.full((rows, 1), -1, np.int64)
    for _ in range(3):  # the first ones load kernels, and record what is replayed
        decoder.candidates(0, step, nothing_asked)
    milliseconds = settings.milliseconds(lambda: decoder.candidates(0, step, nothing_asked))
    case = f"2B, a step of {rows} rows, context {decoder.capacity:,}"
    return Finding(case, f"{TARGET}, candidates to the host", 1e3 * rows / milliseconds, "tokens/s")
