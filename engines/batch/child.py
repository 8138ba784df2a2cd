"""What a worker process of a run does: opens its model, then answers each row that it is sent, several at a time.

python -m engines.batch.child        (started by `engines.batch.processes`)
"""

import asyncio
import os
import signal
import sys
from typing import Any

from engines.batch.answers import Answered, Waiting, answer, most_under_way, watch
from engines.batch.rows import Row
from engines.batch.wire import pack, receive
from engines.serving.openai.chat import ChatCompletions
from engines.serving.served import ServedModel
from export.errors import UserError


async def answer_rows(reader: asyncio.StreamReader, output: int) -> None:
    """Until the other end closes. First says how many rows it takes at a time, or why it takes none."""
    choice = await receive(reader)
    try:
        model, name = choice.open()
    except UserError as error:
        os.write(output, pack(error))
        return
    with model:
        await _answer_rows(reader, output, model, name)


async def _answer_rows(reader: asyncio.StreamReader, output: int, model: ServedModel, name: str) -> None:
    endpoint, waiting = ChatCompletions(model, name), Waiting()
    watcher = asyncio.create_task(watch(model, waiting))
    running: set[asyncio.Task[None]] = set()
    _write(output, most_under_way(model))

    async def one(row: Row) -> None:
        answered: Answered = await answer(endpoint, row)
        _write(output, (answered, waiting.seconds))

    try:
        while True:
            task = asyncio.create_task(one(await receive(reader)))
            running.add(task)
            task.add_done_callback(running.discard)
    except EOFError:
        pass  # nobody asks any longer
    finally:
        watcher.cancel()
        for task in running:
            task.cancel()
        await asyncio.gather(watcher, *running, return_exceptions=True)
        endpoint.close()


def _write(output: int, message: Any) -> None:
    """All of it: what reads is a run that does nothing else but read."""
    data = memoryview(pack(message))
    while data:
        data = data[os.write(output, data) :]


async def _main(output: int) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    await answer_rows(reader, output)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's: it closes our input
    own_output = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not stand among the messages
    asyncio.run(_main(own_output))
