"""The scripts about servers and corpora, with few requests: what they find counts here, no figure does."""

import asyncio
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from benchmarks.hostile_http import ATTACKS, attack_once, head
from tests.support.triton import missing

REPOSITORY = Path(__file__).parents[2]


def finished(script, *options):
    command = [sys.executable, "-m", f"benchmarks.{script}", *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.mark.slow
def test_a_corpus_that_is_killed_three_times_has_every_row_once(tmp_path):
    told = finished(
        "batch_kills", "--pictures", "60", "--broken", "3", "--kills", "3", "--work", str(tmp_path)
    )
    cells = [cell.strip() for cell in told.rstrip().splitlines()[-1].strip("|").split("|")]
    assert (cells[:3], cells[-3:]) == (["60", "3", "3"], ["60", "0", "0"])


@pytest.mark.slow
def test_a_server_survives_hostile_http():
    told = finished(
        "fuzz_http", "--requests", "150", "--controls", "15", "--clients", "16", "--connections", "50"
    )
    assert "15 of 15" in told


@pytest.mark.slow
def test_serve_is_measured_beside_what_else_could_serve():
    without = ["--without-triton"] if missing() else []
    told = finished(
        "serving_http",
        "--clients",
        "2",
        "--rounds",
        "1",
        "--requests",
        "4",
        "--memory-requests",
        "10",
        *without,
    )
    for contestant in ("in process", "serve", "one at a time", *([] if without else ["Triton"])):
        assert f"| {contestant} " in told
    assert "Resident memory of serve" in told


@pytest.mark.slow
def test_the_gaps_between_tokens_are_measured_beside_large_pictures():
    told = finished("large_pictures", "--seconds", "2", "--megapixels", "2", "--clients", "1")
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in told.rstrip().splitlines()[-2:]
    ]
    assert [row[0] for row in cells] == ["0", "1"]
    assert all(int(row[1]) > 20 for row in cells)
    assert int(cells[1][-1]) >= 1


def test_every_attack_ends_against_a_server_that_says_nothing_and_one_that_hangs_up(monkeypatch):
    monkeypatch.setattr("benchmarks.hostile_http.WAIT_SECONDS", 0.05)

    async def attack(is_silent):
        async def serve(reader, writer):
            if is_silent:
                await reader.read()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return [await attack_once(port, Random(seed)) for seed in range(4 * len(ATTACKS))]

    for is_silent in (True, False):
        outcomes = asyncio.run(attack(is_silent))
        assert {outcome for _, outcome in outcomes} <= {"left", "closed"}


def test_a_head_is_http():
    assert head(2, "X: 1") == (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\nX: 1\r\n\r\n"
    )
