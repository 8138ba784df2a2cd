"""Misbehaves to `qv-export serve` at the level of HTTP, thousands of times: it survives, and loses nothing.

    python -m benchmarks.fuzz_http [--requests 10000] [--controls 500] [--clients 32] [--connections 200] [--seed 0]

The generators of `benchmarks/hostile_http.py` against a server of its own on loopback, with the small checkpoint, and
`--connections` that say nothing all the while. In between, a question about a picture must be answered right. At the
end every slot is free, nothing waits, the process is the one that was started with the files that it had, its memory
stands beside what it was after a fifth, and no traceback stands in its log. Exits with 1 otherwise.
"""

import argparse
import asyncio
import base64
import json
import re
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from benchmarks.hostile_http import attack_once, head
from benchmarks.measure import REPOSITORY, print_table
from export.exporter import export_checkpoint
from tests.support.serve import RunningServe, running_serve

HEADER = (
    "requests",
    "answered or refused",
    "closed",
    "left",
    "right answers",
    "findings",
    "after a fifth",
    "at the end",
    "a second",
)
NUM_SLOTS = 4
SETTLE_SECONDS = 60.0
CONTROL_SECONDS = 120.0
MAX_GROWTH = 0.05
ENOUGH_REQUESTS = 2000
"""Of which a fifth has touched all memory that a server will need; of fewer, growth says nothing."""


@dataclass
class Outcome:
    """What all clients saw."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    num_right: int = 0
    findings: list[str] = field(default_factory=list)

    def number(self, *kinds: str) -> int:
        return sum(count for (_, outcome), count in self.counts.items() if outcome in kinds)


def control_of() -> tuple[bytes, str]:
    """A question about a picture, and its answer."""
    data = (REPOSITORY / "examples" / "pictures" / "gate.png").read_bytes()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What does the text say?"},
    ]
    return json.dumps(
        {"messages": [{"role": "user", "content": content}], "max_tokens": 16}
    ).encode(), "GATE7"


async def control(port: int, request: bytes, expected: str) -> str | None:
    """A sound question; what is wrong with its answer, or None."""
    try:
        async with asyncio.timeout(CONTROL_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head(len(request), "Connection: close") + request)
            answer = await reader.read()
            writer.close()
    except (OSError, TimeoutError) as error:
        return f"a sound question got no answer: {error!r}"
    if b" 429 " in answer[:20]:
        await asyncio.sleep(1)
        return await control(port, request, expected)
    try:
        text = json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"]
    except (ValueError, KeyError):
        return f"a sound question got {answer[:300]!r}"
    return None if text == expected else f"a sound question got {text!r}"


async def misbehave(port: int, outcome: Outcome, options: argparse.Namespace, first: int, last: int) -> None:
    """Requests number `first` to `last`, and their share of the sound ones."""
    request, expected = control_of()
    numbers = iter(range(first, last))
    every = max(options.requests // options.controls, 1)

    async def client() -> None:
        for number in numbers:
            outcome.counts[await attack_once(port, Random(f"{options.seed} {number}"))] += 1
            if number % every == 0:
                problem = await control(port, request, expected)
                outcome.num_right += problem is None
                outcome.findings += [problem] if problem else []

    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(options.connections)]
    try:
        await asyncio.gather(*(client() for _ in range(options.clients)))
    finally:
        for _, writer in silent:
            writer.transport.abort()


@dataclass(frozen=True)
class State:
    """What a server holds when nobody asks anything."""

    resident_bytes: int
    num_threads: int
    num_files: int


def settled(server: RunningServe, outcome: Outcome) -> State:
    """Once nothing runs and nothing waits."""
    process = psutil.Process(server.process.pid)
    until = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < until:
        used = metrics_of(server)
        if not used["qv_slots_used"] and not used["qv_queue_length"]:
            break
        time.sleep(0.2)
    else:
        outcome.findings.append(f"slots or queue are not empty after {SETTLE_SECONDS:.0f} s: {used}")
    time.sleep(3)  # it gives memory back once it is idle
    return State(process.memory_info().rss, process.num_threads(), process.num_fds())


def metrics_of(server: RunningServe) -> dict[str, float]:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("qv_"))
    return {name.partition("{")[0]: float(value) for name, value in pairs}


def judge(server: RunningServe, before: State, after: State, outcome: Outcome, num_controls: int) -> None:
    if server.process.poll() is not None:
        outcome.findings.append(f"the server ended with status {server.process.returncode}")
    if outcome.num_right < num_controls:
        outcome.findings.append(f"{outcome.num_right} of {num_controls} sound questions were answered right")
    if after.num_files > before.num_files + 2:
        outcome.findings.append(f"open files grew from {before.num_files} to {after.num_files}")
    is_enough = sum(outcome.counts.values()) >= ENOUGH_REQUESTS
    if is_enough and after.resident_bytes > (1 + MAX_GROWTH) * before.resident_bytes:
        outcome.findings.append(f"memory grew from {before.resident_bytes} to {after.resident_bytes}")
    told = [line for line in server.lines if "Traceback" in line or re.search(r"\bException\b", line)]
    outcome.findings += [f"its log says {line:.200}" for line in told[:5]]
    if outcome.number("500", "502", "no HTTP"):
        outcome.findings.append(f"{outcome.number('500', '502', 'no HTTP')} answers are faults of the server")


def run(bundle: Path, options: argparse.Namespace) -> tuple[Outcome, State, State, float]:
    outcome = Outcome()
    fifth = options.requests // 5
    arguments = ["--slots", NUM_SLOTS, "--max-context", 512, "--threads", 1, "--max-queue", 64]
    with running_serve(bundle, *arguments) as server:
        started = time.perf_counter()
        asyncio.run(misbehave(server.port, outcome, options, 0, fifth))
        before = settled(server, outcome)
        asyncio.run(misbehave(server.port, outcome, options, fifth, options.requests))
        seconds = time.perf_counter() - started
        after = settled(server, outcome)
        num_controls = sum(
            number % max(options.requests // options.controls, 1) == 0 for number in range(options.requests)
        )
        judge(server, before, after, outcome, num_controls)
    return outcome, before, after, seconds


def row_of(
    outcome: Outcome, before: State, after: State, seconds: float, options: argparse.Namespace
) -> list[str]:
    closed, left = outcome.number("closed"), outcome.number("left")
    num_all = sum(outcome.counts.values())
    return [
        f"{num_all:,}",
        f"{num_all - closed - left:,}",
        f"{closed:,}",
        f"{left:,}",
        f"{outcome.num_right} of {options.controls}",
        str(len(outcome.findings)),
        f"{before.resident_bytes / 1e6:.1f} MB",
        f"{after.resident_bytes / 1e6:.1f} MB",
        f"{num_all / seconds:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000, help="(default: %(default)s)")
    parser.add_argument(
        "--controls", type=int, default=500, help="sound questions in between (default: %(default)s)"
    )
    parser.add_argument("--clients", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument(
        "--connections", type=int, default=200, help="that say nothing (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bundle = Path(name) / "bundle"
        export_checkpoint(REPOSITORY / "models" / "qwen2-vl-tiny", bundle)
        outcome, before, after, seconds = run(bundle, options)
    print_table("Hostile HTTP", HEADER, [row_of(outcome, before, after, seconds, options)])
    by_attack: dict[str, dict[str, int]] = {}
    for (attack, ended), count in sorted(outcome.counts.items()):
        by_attack.setdefault(attack, {})[ended] = count
    print_table(
        "What became of each", ("attack", "outcomes"), [[name, str(ends)] for name, ends in by_attack.items()]
    )
    if outcome.findings:
        raise SystemExit("\n".join(outcome.findings[:50]))


if __name__ == "__main__":
    main()
