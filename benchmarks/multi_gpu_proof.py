"""One run on a machine with several GPUs: whether a decoder in stages answers there, and how fast in which processes.

    python -m benchmarks.multi_gpu_proof -o OUT             on two GPUs or more, ten minutes
    python -m benchmarks.multi_gpu_proof --dry-run -o OUT   every line with small sizes on a CPU, two ranks

`OUT/proof.md` and `OUT/proof.json` are written after each step, so a run that is cut short has the steps before; a step
that fails says why, and those that need it are skipped. Exit code 1 if one failed. In this order:

1. tests: `pytest -m multi_gpu`, tokens and logits of stages on GPUs against the CPU.
2. export and build: a random checkpoint of 2B's shape, bfloat16, in one graph and in a stage a GPU, and their engines.
3. serving: `bench --only serving`, 8 clients: one graph on one GPU; stages in one process over all GPUs; a rank a GPU.

What to look for: the tests pass; a rank a GPU is about as fast as one process over all GPUs; stages are slower than one
graph on one GPU, as long as that holds the model, by what crosses the borders.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.checkpoints import QV_EXPORT, add_work_option, checkpoint
from benchmarks.gpu_proof.results import Finding, Proof, StageResult, table, worst, write_proof
from benchmarks.measure import REPOSITORY
from engines.backends import BACKENDS, backend_of, default_backend
from engines.gpus import gpu_facts
from export.errors import UserError

REAL = {"dtype": "bfloat16", "hidden_size": 1536, "num_attention_heads": 12, "num_key_value_heads": 2}
REAL |= {"intermediate_size": 8960, "num_hidden_layers": 28, "vocab_size": 151_936}
SMALL = {"dtype": "float32", "num_hidden_layers": 2}
LIMITS = ("--max-batch", "8", "--max-context", "2048", "--max-patches", "4096", "--max-segments", "16")
CLIENTS = 8


class StepFailedError(Exception):
    """A step's command ended badly; the message is its last line."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of proof.md and proof.json")
    parser.add_argument("--minutes", type=float, default=10, help="for all steps (default: %(default)g)")
    parser.add_argument("--dry-run", action="store_true", help="small sizes on a CPU, no figures")
    parser.add_argument("--target", choices=list(BACKENDS), help="default: the first that runs on these GPUs")
    add_work_option(parser)
    options = parser.parse_args()
    gpus = [] if options.dry_run else gpu_facts()
    if len(gpus) < 2 and not options.dry_run:
        parser.error(f"needs two GPUs, `nvidia-smi` lists {len(gpus)}: --dry-run goes through on a CPU")
    target = options.target or (default_backend().name if options.dry_run else _target(gpus))
    machine = ", ".join(gpu.name for gpu in gpus) or "a CPU"
    run = Run(
        Proof(machine, f"{datetime.now(UTC):%Y-%m-%d}", options.dry_run), options.output, options.minutes
    )

    sizes, num_stages = (SMALL, 2) if options.dry_run else (REAL, min(len(gpus), 8))
    folder = options.work.resolve()
    bundles = {1: folder / "multi-gpu-1", num_stages: folder / f"multi-gpu-{num_stages}"}
    if not options.dry_run:
        run.step("tests", run.tests)
    run.step(
        "export", lambda: run.export(checkpoint(folder, f"multi-gpu-{sizes['dtype']}", **sizes), bundles)
    )
    run.step("build", lambda: run.build(bundles.values(), target), needs="export")
    run.step(
        "serving",
        lambda: [
            run.serving(bundles[1], target, "one graph, one process"),
            run.serving(bundles[num_stages], target, f"{num_stages} stages, one process"),
            run.serving(bundles[num_stages], target, f"{num_stages} ranks", "--ranks", str(num_stages)),
        ],
        needs="build",
    )
    print(table(run.proof))
    return worst(run.proof.stages)


def _target(gpus: Sequence) -> str:
    for name in BACKENDS:
        backend = backend_of(name)
        runs = backend.device == "gpu" and backend.needs_engine and backend.missing() is None
        if runs and all(backend.serves(gpu.sm) for gpu in gpus):
            return name
    raise UserError("No target with engines runs on these GPUs: `qv-export doctor` says what is missing.")


class Run:
    """The steps so far, and the time that is left."""

    def __init__(self, proof: Proof, output: Path, minutes: float) -> None:
        self.proof, self._output, self._deadline = proof, output, time.monotonic() + 60 * minutes
        output.mkdir(parents=True, exist_ok=True)
        write_proof(proof, output)

    def step(self, name: str, do: Callable[[], list[Finding]], needs: str | None = None) -> None:
        """Do a step, whatever comes of it, and write down what is known."""
        start, findings, status, reason = time.monotonic(), [], "done", ""
        states = {stage.stage: stage.status for stage in self.proof.stages}
        if needs is not None and states.get(needs) != "done":
            status, reason = "skipped", f"needs {needs}"
        else:
            try:
                findings = do()
            except subprocess.TimeoutExpired:
                status, reason = "out of time", "the minutes of the run are over"
            except (StepFailedError, UserError, OSError) as error:
                status, reason = "failed", str(error)
        result = StageResult(name, status, time.monotonic() - start, reason, tuple(findings))
        self.proof = replace(self.proof, stages=(*self.proof.stages, result))
        write_proof(self.proof, self._output)
        print(f"{name}: {status}, {result.seconds:.0f} s {reason}", file=sys.stderr, flush=True)

    def tests(self) -> list[Finding]:
        told = self._told([sys.executable, "-m", "pytest", "-q", "-m", "multi_gpu", "-p", "no:cacheprovider"])
        return [Finding("pytest -m multi_gpu", "ours", None, "", note=told.strip().splitlines()[-1])]

    def export(self, source: Path, bundles: dict[int, Path]) -> list[Finding]:
        found = []
        for num_stages, bundle in bundles.items():
            start = time.monotonic()
            stages = ["--pipeline-stages", str(num_stages)] if num_stages > 1 else []
            self._told([*QV_EXPORT, "export", str(source), "-o", str(bundle), "--weights", "link", *stages])
            found.append(
                Finding(f"{num_stages} graphs of the decoder", "export", time.monotonic() - start, "s")
            )
        return found

    def build(self, bundles: Iterable[Path], target: str) -> list[Finding]:
        found = []
        for bundle in bundles:
            start = time.monotonic()
            self._told([*QV_EXPORT, "build", str(bundle), "--target", target, *LIMITS])
            found.append(Finding(bundle.name, f"build {target}", time.monotonic() - start, "s"))
        return found

    def serving(self, bundle: Path, target: str, who: str, *options: str) -> Finding:
        asked = ["--only", "serving", "--clients", str(CLIENTS), "--slots", str(CLIENTS)]
        context = ["--max-context", "2048", "--new-tokens", "4" if self.proof.is_dry_run else "64"]
        told = self._told(
            [*QV_EXPORT, "bench", str(bundle), "--target", target, *asked, *context, *options, "--json"]
        )
        [row] = [row for row in json.loads(told)["rows"] if row["case"].endswith("new tokens")]
        return Finding(f"{CLIENTS} clients", who, row["median"], row["unit"])

    def _told(self, command: Sequence[str]) -> str:
        left = max(self._deadline - time.monotonic(), 0.1)
        done = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=left
        )
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
            raise StepFailedError(f"`{' '.join(command[2:5])}` ended with {done.returncode}: {lines[-1]}")
        return done.stdout


if __name__ == "__main__":
    sys.exit(main())
