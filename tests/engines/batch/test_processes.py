"""Several workers: every row is answered once, whichever of them dies."""

import asyncio
import os
import signal
from contextlib import aclosing

import psutil
import pytest

from engines.batch.answers import Waiting
from engines.batch.processes import answers_of_processes, environments_of, threads_of
from engines.batch.rows import Given, Row
from engines.batch.worker import ModelChoice
from export.errors import UserError


def rows_of(number, num_tokens=24):
    body = b'{"messages": [{"role": "user", "content": "Say %d"}], "min_tokens": %d, "max_tokens": %d}'
    return [Row(str(i), Given(body % (i, num_tokens, num_tokens))) for i in range(number)]


def choice(bundle, **changes):
    return ModelChoice(bundle, num_slots=2, max_context=256, num_threads=1, **changes)


async def collect(answers, heard=lambda _number: None):
    found = []
    async with aclosing(answers) as coming:
        async for one in coming:
            found.append(one)
            heard(len(found))
    return found


def workers():
    return [
        child for child in psutil.Process().children() if "engines.batch.child" in " ".join(child.cmdline())
    ]


def test_rows_of_a_worker_that_dies_are_answered_by_the_next(bundle):
    def kill_one(number):
        if number == 5:
            os.kill(workers()[0].pid, signal.SIGKILL)

    waiting = Waiting()
    answers = answers_of_processes(choice(bundle), iter(rows_of(24)), waiting, [{}, {}])
    found = asyncio.run(collect(answers, kill_one))
    assert sorted(int(one.row.id) for one in found) == list(range(24))
    assert not any(one.is_error for one in found)
    assert {one.num_new_tokens for one in found} == {24}
    assert waiting.seconds >= 0
    assert not workers()


def test_a_row_that_kills_its_workers_is_an_error_and_no_endless_run(bundle, monkeypatch):
    """A worker that cannot live: every row is tried twice and then told so."""
    monkeypatch.setattr("engines.batch.processes.module_command", lambda _module: ["false"])
    answers = answers_of_processes(choice(bundle), iter(rows_of(2)), Waiting(), [{}])
    found = asyncio.run(collect(answers))
    assert [one.content["error"]["code"] for one in found] == ["worker_died"] * 2
    assert "2 workers ended" in found[0].content["error"]["message"]


def test_a_model_that_cannot_be_opened_is_one_mistake(bundle):
    answers = answers_of_processes(choice(bundle, engine="0" * 16), iter(rows_of(4)), Waiting(), [{}, {}])
    with pytest.raises(UserError, match="no whole engine"):
        asyncio.run(collect(answers))
    assert not workers()


def test_a_worker_takes_a_gpu_of_its_own_and_a_share_of_the_cores():
    assert environments_of("cpu", 3, 0) == [{}] * 3
    assert environments_of("gpu", 2, 4) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    with pytest.raises(UserError, match="--workers 3: a worker takes a GPU"):
        environments_of("gpu", 3, 2)
    assert threads_of(1000) == 1
