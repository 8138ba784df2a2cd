"""Stages on the product: `validate` on the GPU, an engine of TensorRT-RTX, the small checkpoint's accuracy."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu_proof.results import Finding
from benchmarks.gpu_proof.settings import SMALL_CHECKPOINT, Settings, Skipped, first_line

GPU_TARGET = "onnxruntime-cuda"
SAMPLES = 20


def validate(settings: Settings) -> list[Finding]:
    """`qv-export validate` of the small checkpoint, on the GPU or, in a dry run, on the CPU."""
    from engines.backends import BACKENDS

    target = "onnxruntime" if settings.is_dry_run else GPU_TARGET
    if target not in BACKENDS:
        raise Skipped(f"this version has no target {target}; it has {', '.join(BACKENDS)}")
    with tempfile.TemporaryDirectory() as scratch:
        bundle, report = Path(scratch) / "bundle", Path(scratch) / "report"
        _run("export", SMALL_CHECKPOINT, "-o", bundle)
        code, words = _try("validate", bundle, "--target", target, "--level", "quick", "--report", report)
    note = next((line.partition(";")[0] for line in words.splitlines() if "gates" in line), words)
    return [Finding("small checkpoint", f"validate --target {target}", float(code), "exit status", note=note)]


def rtx_engine(settings: Settings) -> list[Finding]:
    """Does a TensorRT-RTX engine for SM80 load on this GPU? Its documents leave SM90 out."""
    if settings.engine is None:
        raise Skipped("needs --engine FILE, built with: qv-export build BUNDLE --target tensorrt-rtx --sm 80")
    from engines.backends.tensorrt.library import load_bindings
    from engines.backends.tensorrt.run.cuda import CudaDevice
    from engines.backends.tensorrt.run.open import load_engine
    from engines.session import EngineError
    from export.errors import UserError

    try:
        load_engine(load_bindings("tensorrt-rtx"), settings.engine, CudaDevice())
    except UserError as error:
        raise Skipped(first_line(error)) from error
    except EngineError as error:
        return [Finding("engine for SM80", "TensorRT-RTX", 0.0, "loaded", note=str(error))]
    return [Finding("engine for SM80", "TensorRT-RTX", 1.0, "loaded")]


def accuracy(settings: Settings) -> list[Finding]:
    """What the small checkpoint answers to held-out samples, by the reference, on the CPU."""
    number = settings.size(SAMPLES, 2)
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "report.json"
        program = [sys.executable, "-m", "examples.tiny.evaluate", str(SMALL_CHECKPOINT)]
        arguments = ["--samples", str(number), "--output", str(output)]
        done = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-1000:])
        tasks = json.loads(output.read_text(encoding="utf-8"))["tasks"]
    return [
        Finding(f"held-out {task}", "reference", 100 * figures["pytorch"], "% right", note=f"of {number}")
        for task, figures in tasks.items()
    ]


def _try(*arguments: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "qv_export", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, (done.stdout + done.stderr).strip()


def _run(*arguments: object) -> None:
    code, words = _try(*arguments)
    if code:
        raise RuntimeError(words[-1000:])
