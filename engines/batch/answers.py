"""Answers rows with a model in this process: twice as many on their way as the engine has slots."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Any

from engines.batch.rows import Row
from engines.serving.openai.chat import ChatCompletions
from engines.serving.openai.local import call_local
from engines.serving.served import ServedModel
from export.errors import UserError

_WATCH_SECONDS = 0.05


@dataclass(frozen=True)
class Answered:
    """A row's line of the output, and what it took."""

    row: Row
    content: dict[str, Any]
    """In OpenAI's batch form."""

    @property
    def is_error(self) -> bool:
        return self.content["error"] is not None

    @property
    def num_new_tokens(self) -> int:
        usage = self.content["response"]["body"].get("usage") or {}
        return int(usage.get("completion_tokens", 0))


@dataclass
class Waiting:
    """How long an engine waited: it had free slots, and nothing to put into them."""

    seconds: float = 0.0


def most_under_way(model: ServedModel) -> int:
    """Rows: pictures of the next are read while those before are answered."""
    return min(2 * model.settings.num_slots, model.settings.max_requests)


async def answers_here(
    model: ServedModel, name: str, rows: Iterator[Row], waiting: Waiting
) -> AsyncGenerator[Answered, None]:
    """Every row's answer, as they come."""
    endpoint = ChatCompletions(model, name)
    watcher = asyncio.create_task(watch(model, waiting))
    running: set[asyncio.Task[Answered]] = set()
    is_open = True
    try:
        while is_open or running:
            while is_open and len(running) < most_under_way(model):
                row = next(rows, None)
                if row is None:
                    is_open = False
                else:
                    running.add(asyncio.create_task(answer(endpoint, row)))
            if running:
                ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    yield task.result()
    finally:
        watcher.cancel()
        for task in running:
            task.cancel()
        await asyncio.gather(watcher, *running, return_exceptions=True)
        endpoint.close()


async def answer(endpoint: ChatCompletions, row: Row) -> Answered:
    """One row. What is wrong with it is its answer."""
    try:
        body = await asyncio.to_thread(row.source.read)
    except UserError as mistake:
        return failed_row(row, str(mistake), "invalid_row", 400)
    status, content = await call_local(endpoint, body, _identifier(row))
    return _answered(row, status, content)


def failed_row(row: Row, message: str, code: str, status: int) -> Answered:
    """A row that nobody could answer."""
    return _answered(row, status, {"error": {"message": message, "code": code}})


def _answered(row: Row, status: int, content: dict[str, Any]) -> Answered:
    error = content.get("error")
    identifier = _identifier(row)
    return Answered(
        row,
        {
            "id": f"batch_req_{identifier}",
            "custom_id": row.id,
            "response": {"status_code": status, "request_id": identifier, "body": content},
            "error": error and {"code": error.get("code"), "message": error["message"]},
        },
    )


def _identifier(row: Row) -> str:
    return hashlib.sha256(row.id.encode("utf-8", "replace")).hexdigest()[:32]


async def watch(model: ServedModel, waiting: Waiting) -> None:
    """Count how long slots are free."""
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        stats = model.service.stats()
        if stats.slots_used < stats.num_slots and not stats.queue_length:
            waiting.seconds += _WATCH_SECONDS * (1 - stats.slots_used / stats.num_slots)
