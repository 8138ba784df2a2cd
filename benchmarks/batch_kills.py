"""A corpus whose run is killed again and again, against an undisturbed run: the same rows, each of them once.

    python -m benchmarks.batch_kills [--pictures 2000] [--broken 20] [--kills 10] [--workers 1] [--seed 0] [--work DIR]

Small pictures, some of them broken, short answers of the small checkpoint. `qv-export batch` gets SIGKILL each time
another random number of rows is answered, and is started again with `--resume`. At the end every row's status, answer
and error must be those of the undisturbed run.
"""

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import add_work_option, exported
from benchmarks.measure import REPOSITORY, print_table, seconds_text

PROMPT = "What is in this picture?"
HEADER = ("pictures", "broken", "killed", "undisturbed", "with kills", "rows", "different", "twice")


def make_pictures(directory: Path, num_pictures: int, num_broken: int, seed: int) -> None:
    """Noise of 28 to 84 pixels a side; the broken ones are cut short or no pictures at all."""
    import numpy as np
    from PIL import Image

    directory.mkdir(parents=True)
    chance = np.random.default_rng(seed)
    broken = set(chance.choice(num_pictures, num_broken, replace=False).tolist())
    for number in range(num_pictures):
        height, width = chance.integers(1, 4, 2) * 28
        file = io.BytesIO()
        Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "png")
        data = file.getvalue()
        if number in broken:
            data = data[:60] if number % 2 else b"no picture"
        (directory / f"{number:05}.png").write_bytes(data)


def start(bundle: Path, pictures: Path, output: Path, num_workers: int) -> "subprocess.Popen[bytes]":
    arguments = [
        "batch",
        bundle,
        "--input",
        f"{pictures}/*.png",
        "--prompt",
        PROMPT,
        "-o",
        output,
        "--resume",
    ]
    limits = ["--max-new-tokens", 4, "--threads", 1, "--max-context", 256, "--workers", num_workers, "-q"]
    return subprocess.Popen(
        [sys.executable, "-m", "qv_export", *map(str, (*arguments, *limits))], cwd=REPOSITORY
    )


def num_answered(output: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in output.glob("part-*"))


def run_undisturbed(*arguments: Any) -> float:
    started = time.perf_counter()
    if status := start(*arguments).wait():
        raise RuntimeError(f"qv-export batch ended with status {status}")
    return time.perf_counter() - started


def run_killed(bundle: Path, pictures: Path, output: Path, num_workers: int, moments: list[int]) -> int:
    """Kill at each moment, a number of answered rows, and go on; returns how often it was killed in the middle."""
    num_killed = 0
    for moment in [*moments, None]:
        process = start(bundle, pictures, output, num_workers)
        while process.poll() is None and (moment is None or num_answered(output) < moment):
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            num_killed += 1
        elif process.returncode:
            raise RuntimeError(f"qv-export batch ended with status {process.returncode}")
        process.wait()
    return num_killed


def rows_of(output: Path) -> tuple[dict[str, Any], int]:
    """What each row says, without what differs from run to run (times, reused tokens), and the number of lines."""
    if unfinished := [*output.glob("*.unfinished")]:
        raise RuntimeError(f"not whole: {unfinished}")
    rows, num_lines = {}, 0
    for part in sorted(output.glob("part-*.jsonl")):
        for line in part.read_text(encoding="utf-8").splitlines():
            row, num_lines = json.loads(line), num_lines + 1
            response = row["response"]
            rows[row["custom_id"]] = (response["status_code"], row["error"], response["body"].get("choices"))
    return rows, num_lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=2000, help="(default: %(default)s)")
    parser.add_argument("--broken", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=1, help="of the runs that are killed (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    add_work_option(parser)
    options = parser.parse_args()
    bundle = exported(options.work, REPOSITORY / "models" / "qwen2-vl-tiny", "float32")
    directory = Path(options.work) / f"batch-kills-{os.getpid()}"
    pictures = directory / "pictures"
    make_pictures(pictures, options.pictures, options.broken, options.seed)
    seconds = run_undisturbed(bundle, pictures, directory / "whole", 1)
    expected, _ = rows_of(directory / "whole")
    chance = random.Random(options.seed)
    moments = sorted(chance.sample(range(1, options.pictures), options.kills))
    started = time.perf_counter()
    num_killed = run_killed(bundle, pictures, directory / "killed", options.workers, moments)
    killed_seconds = time.perf_counter() - started
    found, num_lines = rows_of(directory / "killed")
    num_different = sum(found.get(name) != row for name, row in expected.items()) + len(
        found.keys() - expected.keys()
    )
    num_errors = sum(error is not None for _, error, _ in expected.values())
    row = [
        f"{len(expected):,}",
        str(num_errors),
        str(num_killed),
        seconds_text(seconds),
        seconds_text(killed_seconds),
        f"{num_lines:,}",
        str(num_different),
        str(num_lines - len(found)),
    ]
    print_table("A corpus that is killed and gone on with", HEADER, [row])
    if (
        num_different
        or num_lines != len(found)
        or len(expected) != options.pictures
        or num_errors != options.broken
    ):
        raise SystemExit("the output of the run that was killed differs")


if __name__ == "__main__":
    main()
