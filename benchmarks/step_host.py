"""Host time of a scheduler's decode step with the engine taken out, at 2B's vocabulary.

    python -m benchmarks.step_host [--before TREE] [--rows N ...] [--steps N] [--quick]

An engine that answers at once, with logits drawn before, stands where a decoder goes: what is left is the scheduling,
the choice of a token for every row, and the events. Whole logits [B, 151,936] and candidates are measured beside each
other, and with `--before` an older checkout of this repository on whole logits, in the same run on the same machine.
Milliseconds are the median over steps of the stepping thread's CPU time, which other processes lengthen less than the
wall's; `whole` counts rows a step whose whole logits candidates had to ask for.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

VOCAB = 151_936
NUM_CANDIDATES = 256
ROWS = (1, 8, 32)
NUM_STEPS = 200
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "top-p": {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 0.9},
    "top-k, top-p, repetition": {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
        "repetition_penalty": 1.05,
    },
    "whole distribution": {"do_sample": True, "top_k": 0},
    "penalties": {
        "do_sample": True,
        "top_k": 20,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.2,
        "logit_bias": ((100, 2.0), (200, -5.0)),
    },
    "guided, greedy": {"do_sample": False, "guided": True},
    "guided, top-p": {"do_sample": True, "top_k": 0, "top_p": 0.9, "guided": True},
}
NUM_LIKELY = 60_000
"""Ids below which likely tokens are drawn."""
# Of Qwen2-VL's tokenizer; the ids behind its tokens only pad the vocabulary, and an export suppresses them.
SUPPRESSED = tuple(range(151_665, VOCAB))


@dataclass
class Inputs:
    """A prompt of text, with the fields that every version of the runtime reads."""

    token_ids: Any
    position_ids: Any
    patches: Any
    positions: Any
    cu_seqlens: Any
    position_delta: int = 0
    grids: tuple[Any, ...] = ()


class Guide:
    """Allows a fixed set of tokens."""

    is_over = False

    def __init__(self, allowed: Any) -> None:
        self._allowed = allowed

    def begin(self, guides: Any) -> None:
        pass

    def allowed(self) -> Any:
        return self._allowed

    def accept(self, token_id: int) -> None:
        pass


class WholeEngine:
    """A decoder that has its answers ready."""

    capacity = 1 << 20

    def __init__(self, num_slots: int) -> None:
        import numpy as np

        random = np.random.default_rng(0)
        self.num_slots, self._calls, self.num_whole = num_slots, 0, 0
        # As a language model's: a few likely tokens, and a long tail that weighs a few hundredths together.
        self._logits = random.normal(0, 1.5, (4, num_slots, 1, VOCAB)).astype(np.float32)
        likely = random.integers(0, NUM_LIKELY, (4, num_slots, 1, 12))
        peaks = random.uniform(12, 18, likely.shape).astype(np.float32)
        np.put_along_axis(self._logits, likely, peaks, axis=-1)

    def forward(self, _first_slot: int, *inputs: Any) -> Any:
        self._calls += 1
        first = inputs[0]
        return self._logits[self._calls % 4, : len(getattr(first, "token_ids", first))]


class CandidateEngine(WholeEngine):
    """The same, picked before."""

    def __init__(self, num_slots: int) -> None:
        import numpy as np

        super().__init__(num_slots)
        order = np.argsort(-self._logits, axis=-1)[..., :NUM_CANDIDATES]
        self._top = [(np.take_along_axis(self._logits, order, axis=-1)[i], order[i]) for i in range(4)]
        self._nothing_asked = np.zeros((num_slots, 1, 1), np.float32)
        largest = self._logits.max(axis=-1, keepdims=True)
        self._sums = largest[..., 0] + np.log(np.exp(self._logits - largest).sum(axis=-1))

    def candidates(self, _first_slot: int, inputs: Any, asked_ids: Any) -> Any:
        from engines.session import Candidates

        self._calls += 1
        at, rows = self._calls % 4, len(inputs.token_ids)
        logits = self._logits[at]
        asked = self._nothing_asked[:rows]
        if asked_ids.shape[1] > 1:
            asked = logits[[[row] for row in range(rows)], 0, asked_ids][:, None]
        top_logits, top_ids = self._top[at]

        def whole(row: int) -> Any:
            self.num_whole += 1
            return logits[row]

        return Candidates(top_logits[:rows], top_ids[:rows], self._sums[at, :rows], asked, whole)


def measure(engine: str, rows: int, setting: str, steps: int) -> dict[str, float] | None:
    """Median seconds of a step, and rows a step that needed whole logits; None where a version lacks the setting."""
    import numpy as np

    scheduler_of = __import__("engines.runtime.scheduler", fromlist=["Scheduler"]).Scheduler
    request_of = __import__("engines.runtime.answer", fromlist=["Request"]).Request
    config_of = _generation_config()
    how = dict(SETTINGS[setting])
    is_guided = how.pop("guided", False)
    model: Any = SimpleNamespace(
        image_token_id=151_655,
        video_token_id=151_656,
        decoder=SimpleNamespace(vocab_size=VOCAB, hidden_size=1536),
        vision=SimpleNamespace(patches_per_token=4),
    )
    decoder = (CandidateEngine if engine == "candidates" else WholeEngine)(rows)
    scheduler = scheduler_of(None, decoder, model)
    random = np.random.default_rng(1)
    empty = np.zeros((0, 1176), np.float32)
    for row in range(rows):
        ids = random.integers(0, 151_000, 8)
        inputs = Inputs(
            ids, np.zeros((3, 8), np.int32), empty, np.zeros((2, 0), np.int32), np.zeros(1, np.int32)
        )
        more = {}
        if is_guided:
            allowed = np.zeros(VOCAB, np.bool_)
            allowed[random.integers(0, 151_000, 40_000)] = True
            allowed[: NUM_LIKELY // 2] = True
            more["guide"] = Guide(allowed)
        try:
            config = config_of(max_new_tokens=1 << 19, **how)
            if hasattr(config, "suppress_tokens"):
                config = replace(config, suppress_tokens=SUPPRESSED)
            request = request_of(inputs, config, row, **more)
        except TypeError:
            return None
        scheduler.submit(request, lambda _event: None)
    for _ in range(8):
        scheduler.step()
    decoder.num_whole, seconds = 0, []
    for _ in range(steps):
        start = time.thread_time()
        scheduler.step()
        seconds.append(time.thread_time() - start)
    if scheduler.stats().num_failed:
        raise RuntimeError(f"{setting}: answers failed, so that nothing was measured")
    return {"seconds": statistics.median(seconds), "whole": decoder.num_whole / steps}


def _generation_config() -> Any:
    """Where this version keeps it."""
    try:
        return __import__(
            "export.checkpoint.generation_config", fromlist=["GenerationConfig"]
        ).GenerationConfig
    except ModuleNotFoundError:
        module = __import__("engines.runtime.generation_config", fromlist=["GenerationConfig"])
        return module.GenerationConfig


def _child(tree: Path, **wanted: Any) -> dict[str, float] | None:
    """Measure in a fresh interpreter over a checkout; -P, since this folder has an `export.py`."""
    done = subprocess.run(
        [sys.executable, "-P", __file__, "--measure", json.dumps(wanted)],
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{tree}: {done.stderr[-2000:]}")
    found: dict[str, float] | None = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="an older checkout to measure beside this one")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="batch sizes (default: 1 8 32)")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="steps each (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few steps: shows that the script works")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(**json.loads(options.measure))))
        return
    from benchmarks.measure import REPOSITORY, print_table

    rows_of = (1,) if options.quick else options.rows
    steps = 5 if options.quick else options.steps
    trees = [("whole logits", REPOSITORY, "whole"), ("candidates", REPOSITORY, "candidates")]
    if options.before:
        trees.insert(0, ("before, whole logits", options.before.resolve(), "whole"))
    table = []
    for rows in rows_of:
        for setting in SETTINGS:
            found = [
                _child(tree, engine=engine, rows=rows, setting=setting, steps=steps)
                for _, tree, engine in trees
            ]
            cells = ["-" if one is None else f"{one['seconds'] * 1e3:.3f} ms" for one in found]
            last = found[-1]
            assert last is not None
            table.append([str(rows), setting, *cells, f"{last['whole']:.2f}"])
    header = ("rows", "choice", *(name for name, _, _ in trees), "whole")
    print_table("A decode step without its engine", header, table)


if __name__ == "__main__":
    main()
