"""Twenty hostile requests at once, again and again: what another client of the same server notices of them.

    python -m benchmarks.hostile_storm [--rounds N] [--requests N] [--seed S] [--only WORDS] [--quick]

`qv-export serve` with default limits and the small trained checkpoint, on loopback. Clients that mean no good send
requests of `benchmarks.hostile_requests` at once, from a process of their own; meanwhile one client asks for a token
about a small picture, another one for a token about nothing, each again and again. The table tells how long these two
waited, and how long with nobody else there; how much memory the server's processes took over idle; whether each hostile
request was answered or refused within its own time, counted from its last byte; and whether all slots came back. Beside
it stands how busy the machine was: the bounds are for one that is not busy otherwise. Exits with 1 past a bound.
"""

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.hostile_media import data_url, noise
from benchmarks.hostile_requests import hostile_requests, storm, user
from benchmarks.measure import REPOSITORY, print_table
from export.exporter import export_checkpoint
from tests.support.serve import RunningServe, running_serve

TINY = REPOSITORY / "models" / "qwen2-vl-tiny"
HEADER = (
    "hostile at once",
    "alone: text, max",
    "picture, max",
    "wait: text, median",
    "text, max",
    "picture, median",
    "picture, max",
    "latest end past its time",
    "memory over idle",
    "slots lost",
    "CPU busy",
    "stolen",
    "load",
)
MAX_WAIT_SECONDS = 0.5
"""What no other client waits longer for."""
MAX_LATE_SECONDS = 0.5
"""What a hostile request ends after its own time at most."""
MAX_MEMORY_BYTES = 1_500_000_000
"""What the server's processes take over idle at most, with default limits."""
TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True)
class Ended:
    """How one hostile request ended."""

    name: str
    status: int
    seconds: float
    """From its last byte, or what the server took of it, to the end of the answer."""
    says: str


@dataclass
class StormResult:
    """What one storm did."""

    ended: list[Ended]
    alone_waits: tuple[list[float], list[float]]
    text_waits: list[float]
    picture_waits: list[float]
    idle_bytes: int
    peak_bytes: int
    slots_used: float
    machine: dict[str, float] = field(default_factory=dict)

    @property
    def late_seconds(self) -> float:
        return max(one.seconds for one in self.ended) - TIMEOUT_SECONDS

    def findings(self, slowness: float = 1.0) -> list[str]:
        """What is past a bound. On a machine that is busy with other things all takes `slowness` times as long."""
        found = [
            f"{kind} waited {max(waits):.2f} s"
            for kind, waits in (("a text", self.text_waits), ("a picture", self.picture_waits))
            if max(waits) > MAX_WAIT_SECONDS * slowness
        ]
        found += [
            f"{one.name}: status {one.status} after {one.seconds:.2f} s: {one.says}"
            for one in self.ended
            if one.seconds > TIMEOUT_SECONDS + MAX_LATE_SECONDS * slowness or not 200 <= one.status < 500
        ]
        if self.peak_bytes - self.idle_bytes > MAX_MEMORY_BYTES:
            found.append(f"memory rose by {(self.peak_bytes - self.idle_bytes) / 1e6:.0f} MB")
        if self.slots_used:
            found.append(f"{self.slots_used:.0f} slots did not come back")
        return found


def post(port: int, body: bytes) -> tuple[int, str, float]:
    """Status and answer of one request on a connection of its own, and the seconds from its last byte to that."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        with contextlib.suppress(
            BrokenPipeError, ConnectionResetError
        ):  # refused on the way: an answer stands there
            connection.request("POST", "/v1/chat/completions", body)
        sent = time.perf_counter()
        response = connection.getresponse()
        says = response.read(1000).decode(errors="replace")
        return response.status, says, time.perf_counter() - sent
    except (OSError, http.client.HTTPException) as error:
        return 499, f"{type(error).__name__}: {error}", 0.0
    finally:
        connection.close()


def attack(port: int, names: list[str], ended: "multiprocessing.Queue[list[Ended] | None]", go: Any) -> None:
    """In a process of its own: make the requests, say so, and send all at once."""
    os.nice(5)  # strangers have machines of their own
    kinds = hostile_requests()
    bodies = [kinds[name]().body(TIMEOUT_SECONDS) for name in names]
    ended.put(None)
    go.wait()

    def send(name: str, body: bytes) -> Ended:
        status, says, seconds = post(port, body)
        return Ended(name, status, seconds, says[:200])

    with ThreadPoolExecutor(len(names)) as threads:
        ended.put(list(threads.map(send, names, bodies)))


@contextmanager
def repeated(call: Callable[[], None], pause_seconds: float) -> Iterator[None]:
    """Call again and again in a thread, and raise what it raised."""
    is_over, errors = threading.Event(), []

    def run() -> None:
        try:
            while not is_over.is_set():
                call()
                is_over.wait(pause_seconds)
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    if errors:
        raise errors[0]


def asks(port: int, body: bytes, waits: list[float]) -> Callable[[], None]:
    """What an honest client does."""

    def ask() -> None:
        start = time.perf_counter()
        status, says, _ = post(port, body)
        waits.append(time.perf_counter() - start)
        if status != 200:
            raise RuntimeError(f"an honest request got {status}: {says}")

    return ask


def honest_bodies() -> tuple[bytes, bytes]:
    picture = {"type": "image_url", "image_url": {"url": data_url(noise(112, 1, "PNG"))}}
    fields = json.dumps({"max_tokens": 1}).encode()[1:]
    return tuple(
        b'{"messages": ' + user(content) + b", " + fields
        for content in ("Hello", [picture, {"type": "text", "text": "What is this?"}])
    )  # type: ignore[return-value]


def tree_bytes(process: psutil.Process) -> int:
    """Resident memory of a process and all below it."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def slots_used(server: RunningServe) -> float:
    lines = server.get("/metrics")[2].decode().splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith(("qv_slots_used{", "qv_queue_length{"))
    )


def one_storm(server: RunningServe, names: list[str]) -> StormResult:
    """Send the requests at once, and look on."""
    process = psutil.Process(server.process.pid)
    context = multiprocessing.get_context("spawn")
    queue, go = context.Queue(), context.Event()
    attacker = context.Process(target=attack, args=(server.port, names, queue, go))
    attacker.start()
    queue.get()
    text, picture = honest_bodies()
    waits: tuple[list[float], list[float]] = ([], [])
    alone: tuple[list[float], list[float]] = ([], [])
    for body, seen in zip((text, picture), alone, strict=True):
        for _ in range(20):
            asks(server.port, body, seen)()
    idle = peak = tree_bytes(process)

    def look() -> None:
        nonlocal peak
        peak = max(peak, tree_bytes(process))

    before = psutil.cpu_times_percent(None)
    with (
        repeated(look, 0.05),
        repeated(asks(server.port, text, waits[0]), 0.05),
        repeated(asks(server.port, picture, waits[1]), 0.05),
    ):
        go.set()
        ended = queue.get()
        assert ended is not None
        time.sleep(0.3)
        before = psutil.cpu_times_percent(None)
    attacker.join()
    until = time.monotonic() + 10
    while (used := slots_used(server)) and time.monotonic() < until:
        time.sleep(0.1)
    machine = {
        "busy": 100 - before.idle - getattr(before, "iowait", 0),
        "steal": getattr(before, "steal", 0.0),
        "load": os.getloadavg()[0],
    }
    return StormResult(ended, alone, *waits, idle, peak, used, machine)


def row(result: StormResult) -> list[str]:
    return [
        str(len(result.ended)),
        *(f"{max(waits) * 1e3:.0f} ms" for waits in result.alone_waits),
        *(
            f"{value * 1e3:.0f} ms"
            for waits in (result.text_waits, result.picture_waits)
            for value in (median(waits), max(waits))
        ),
        f"{result.late_seconds:+.2f} s",
        f"{(result.peak_bytes - result.idle_bytes) / 1e6:.0f} MB",
        f"{result.slots_used:.0f}",
        f"{result.machine['busy']:.0f} %",
        f"{result.machine['steal']:.0f} %",
        f"{result.machine['load']:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=20, help="at once (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="WORDS", help="kinds whose names hold these words")
    parser.add_argument("--quick", action="store_true", help="one round of six")
    parser.add_argument("--work", type=Path, help="where the bundle goes (default: a temporary folder)")
    options = parser.parse_args()
    rounds, number = (1, 6) if options.quick else (options.rounds, options.requests)
    rows, findings = [], []
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        export_checkpoint(TINY, Path(scratch) / "bundle")
        with running_serve(Path(scratch) / "bundle") as server:
            for number_of_round in range(rounds):
                names = storm(options.seed + number_of_round, 1000)
                names = [name for name in names if options.only in name]
                result = one_storm(server, (names * number)[:number])
                rows.append(row(result))
                found = result.findings()
                findings += [f"round {number_of_round}: {one}" for one in found]
                for one in sorted(result.ended, key=lambda ended: -ended.seconds):
                    print(f"  {one.seconds:6.2f} s  {one.status}  {one.name}: {one.says}", file=sys.stderr)
                print(*rows[-1], *found, sep=" | ", file=sys.stderr, flush=True)
    print_table(f"Storms on qv-export serve, {TIMEOUT_SECONDS:g} s for each hostile request", HEADER, rows)
    sys.exit("\n".join(findings) or 0)


if __name__ == "__main__":
    main()
