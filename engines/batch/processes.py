"""Answers rows with several worker processes, each with a model of its own; one that dies is replaced.

A row whose worker died is asked once more of another one. If that dies too, the row is an error: it is the one that
kills them.
"""

import asyncio
import logging
import os
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

from engines.batch.answers import Answered, Waiting, failed_row
from engines.batch.rows import Row
from engines.batch.wire import pack, receive
from engines.batch.worker import ModelChoice
from export.errors import UserError
from plugins.child_python import module_command

logger = logging.getLogger(__name__)

_MOST_DEATHS = 2
"""Of workers with one row under way: more is the row's own fault."""
_PIPE_BYTES = 1 << 20
_END_SECONDS = 10.0


class _Rows:
    """What is left to do, those first whose worker died."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows
        self._again: deque[Row] = deque()
        self._deaths: dict[str, int] = {}

    def next(self) -> Row | None:
        return self._again.popleft() if self._again else next(self._rows, None)

    def died_with(self, rows: Sequence[Row]) -> list[Row]:
        """Take back what a worker had; gives those that must not be asked any more."""
        given_up = []
        for row in rows:
            self._deaths[row.id] = self._deaths.get(row.id, 0) + 1
            if self._deaths[row.id] < _MOST_DEATHS:
                self._again.append(row)
            else:
                given_up.append(row)
        return given_up


def environments_of(device: str, num_workers: int, num_gpus: int) -> list[dict[str, str]]:
    """What each of some workers sees of the machine: a GPU of its own, where a GPU computes.

    Raises:
        UserError: more workers than GPUs.
    """
    if device == "cpu":
        return [{}] * num_workers
    if num_workers > num_gpus:
        raise UserError(
            f"--workers {num_workers}: a worker takes a GPU, and `nvidia-smi` lists {num_gpus} here. One engine on a "
            "GPU answers as many rows at once as it has slots."
        )
    return [{"CUDA_VISIBLE_DEVICES": str(number)} for number in range(num_workers)]


def threads_of(num_workers: int) -> int:
    """CPU threads of each worker's engine, so that together they have the cores of this machine."""
    return max(1, len(os.sched_getaffinity(0)) // num_workers)


async def answers_of_processes(
    choice: ModelChoice, rows: Iterator[Row], waiting: Waiting, environments: Sequence[Mapping[str, str]]
) -> AsyncGenerator[Answered, None]:
    """Every row's answer, as they come.

    Args:
        choice: the model that each worker opens.
        rows: to answer.
        waiting: told how long the engines waited, their mean.
        environments: of each worker, over our own; their number is that of the workers.

    Raises:
        UserError: the model cannot be opened.
    """
    left, found = _Rows(rows), asyncio.Queue[Answered]()
    seconds = [0.0] * len(environments)
    tasks = {
        asyncio.create_task(_keep_working(choice, left, found, seconds, number, environment))
        for number, environment in enumerate(environments)
    }
    getting: asyncio.Task[Answered] | None = None
    try:
        while tasks or not found.empty():
            getting = asyncio.create_task(found.get())
            ended, _ = await asyncio.wait({getting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            for task in ended & tasks:
                task.result()
            tasks -= ended
            waiting.seconds = sum(seconds) / len(seconds)
            if getting.done():
                yield getting.result()
            else:
                getting.cancel()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if getting is not None:
            getting.cancel()


async def _keep_working(
    choice: ModelChoice,
    rows: _Rows,
    found: "asyncio.Queue[Answered]",
    seconds: list[float],
    number: int,
    environment: Mapping[str, str],
) -> None:
    """One worker, and the next one in its place, until no row is left."""
    before = 0.0
    while (row := rows.next()) is not None:
        under_way = {row.id: row}
        async with _started(environment) as process:
            try:
                await _work(process, choice, rows, under_way, found, seconds, number, before)
                return
            except (EOFError, ConnectionError):
                before, status = seconds[number], await process.wait()
        logger.warning(
            "worker %d ended with status %d; %d rows are asked again", number, status, len(under_way)
        )
        for lost in rows.died_with(list(under_way.values())):
            message = (
                f"{_MOST_DEATHS} workers ended while this row was under way, the last with status {status}."
            )
            await found.put(failed_row(lost, message, "worker_died", 500))


async def _work(
    process: Process,
    choice: ModelChoice,
    rows: _Rows,
    under_way: dict[str, Row],
    found: "asyncio.Queue[Answered]",
    seconds: list[float],
    number: int,
    before: float,
) -> None:
    """Keep a worker busy until all is answered.

    Raises:
        EOFError, ConnectionError: it ended before.
        UserError: it cannot open the model.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(pack(choice))
    most = await receive(process.stdout)
    if isinstance(most, UserError):
        raise most
    for first in under_way.values():
        process.stdin.write(pack(first))
    while under_way:
        while len(under_way) < most and (row := rows.next()) is not None:
            under_way[row.id] = row
            process.stdin.write(pack(row))
        await process.stdin.drain()
        answered, waited = await receive(process.stdout)
        seconds[number] = before + waited
        del under_way[answered.row.id]
        await found.put(answered)


@asynccontextmanager
async def _started(environment: Mapping[str, str]) -> AsyncIterator[Process]:
    """A worker process, which has ended when the body has: by its input's end, or by force if the body fails."""
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *module_command("engines.batch.child"),
            stdin=PIPE,
            stdout=PIPE,
            env={**os.environ, **environment},
            limit=_PIPE_BYTES,
        )
    )
    try:
        process = await asyncio.shield(starting)
    except asyncio.CancelledError:  # it is being started all the same
        await _kill(await starting)
        raise
    try:
        yield process
    except BaseException:
        await _kill(process)
        raise
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), _END_SECONDS)
    except TimeoutError:
        await _kill(process)


async def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    assert process.stdin is not None
    process.stdin.close()
    await process.wait()
    with suppress(ConnectionError):
        await process.stdin.wait_closed()
