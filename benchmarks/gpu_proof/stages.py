"""The stages in their order, each run so that its end cannot take the others with it."""

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gpu_proof.results import Finding, StageResult, stage_from_json
from benchmarks.gpu_proof.settings import Settings, Skipped, first_line


@dataclass(frozen=True)
class Stage:
    name: str
    function: str
    """`module:function` of this package; takes `Settings`, gives findings."""
    most_seconds: int

    def load(self) -> Callable[[Settings], list[Finding]]:
        module, _, name = self.function.partition(":")
        function: Callable[[Settings], list[Finding]] = getattr(
            importlib.import_module(f"benchmarks.gpu_proof.{module}"), name
        )
        return function


STAGES = (
    Stage("cached attention", "stage_kernels:cached_attention", 90),
    Stage("rotary and patch attention", "stage_kernels:rotary_and_patches", 150),
    Stage("reference on the GPU", "stage_model:reference", 45),
    Stage("speed of the model", "stage_model:speed", 90),
    Stage("plugins' PTX", "stage_kernels:driver", 45),
    Stage("validate", "stage_product:validate", 120),
    Stage("2B served", "stage_served:served", 150),
    Stage("Transformers' speed", "stage_model:transformers_speed", 150),
    Stage("accuracy", "stage_product:accuracy", 120),
    Stage("TensorRT-RTX engine", "stage_product:rtx_engine", 30),
)
"""Most valuable first: a run that is cut short has those."""


def run_here(stage: Stage, settings: Settings) -> StageResult:
    """In this process; whatever goes wrong is a result."""
    start = time.monotonic()

    def result(status: str, reason: str = "", findings: tuple[Finding, ...] = ()) -> StageResult:
        return StageResult(stage.name, status, time.monotonic() - start, reason, findings)

    try:
        return result("done", findings=tuple(stage.load()(settings)))
    except Skipped as reason:
        return result("skipped", str(reason))
    except Exception as error:  # noqa: BLE001  (the other stages must still run)
        return result("failed", first_line(error))


def run_apart(stage: Stage, settings: Settings, seconds: float) -> StageResult:
    """In a process of its own, which a fault of the device or the end of its time ends alone."""
    command = [sys.executable, "-m", "benchmarks.gpu_proof", "--stage", stage.name]
    command += ["--dry-run"] if settings.is_dry_run else []
    command += ["--engine", str(settings.engine)] if settings.engine else []
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return StageResult(stage.name, "out of time", time.monotonic() - start, f"more than {seconds:.0f} s")
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        words = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return StageResult(
            stage.name, "failed", time.monotonic() - start, f"status {done.returncode}: {words}"
        )
    return stage_from_json(json.loads(lines[-1]))


def to_json(result: StageResult) -> str:
    """On one line, for the parent process."""
    return json.dumps(asdict(result))


def run_all(
    settings: Settings, seconds: float, names: tuple[str, ...], report: Callable[[StageResult], None]
) -> None:
    """Every stage that still has time, in order; `report` hears of each as it ends."""
    deadline = time.monotonic() + seconds
    for stage in STAGES:
        if names and stage.name not in names:
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            report(StageResult(stage.name, "out of time", 0.0, "no time was left for it"))
        else:
            report(
                run_apart(stage, settings, min(left, stage.most_seconds if not settings.is_dry_run else left))
            )


def page_of_the_project() -> Path:
    """Where figures are kept."""
    return Path("docs/performance.md")
