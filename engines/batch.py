"""A corpus of requests through one engine: rows in, part files out, whole after any end of the process."""

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from engines.serving.openai.chat import ChatCompletions
from engines.serving.openai.local import call_local
from engines.serving.served import ServedModel
from export.errors import UserError
from export.files.atomic import name_whole_file

ROWS_PER_PART = 1000
_PATH = "/v1/chat/completions"
_UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class Row:
    """One request of a corpus."""

    id: str
    body: Callable[[], bytes]
    """JSON; read when it is its turn.

    Raises:
        UserError: it cannot be.
    """


@dataclass
class Tally:
    """What was done so far."""

    num_rows: int = 0
    num_errors: int = 0
    num_new_tokens: int = 0
    seconds: float = 0.0
    waiting_seconds: float = 0.0
    """While which the engine had free slots and rows were left: pictures were being read."""


class Parts:
    """The output: part files of one shard. A part is renamed when it is whole, so that a reader sees whole ones alone.

    Args:
        directory: of the output.
        shard: which of the shards writes.
        resume: go on with what is there; else nothing of this shard may be there.

    Raises:
        UserError: there is output already, and nobody asked to go on with it.
    """

    def __init__(self, directory: Path, shard: int, *, resume: bool) -> None:
        self._directory, self._shard = directory, shard
        found = sorted(directory.glob(f"part-{shard:05}-*"))
        if found and not resume:
            raise UserError(
                f"{directory} has output of this shard already ({found[0].name}). Give --resume to go on with it, or "
                "another output."
            )
        for unfinished in [path for path in found if path.suffix == _UNFINISHED]:
            _keep_whole_lines(unfinished)
        self._number = len(list(directory.glob(f"part-{shard:05}-*.jsonl")))
        self._file: TextIO | None = None
        self._num_rows = 0

    def done(self) -> set[str]:
        """Ids of the rows that are answered."""
        ids: set[str] = set()
        for part in sorted(self._directory.glob(f"part-{self._shard:05}-*.jsonl")):
            with part.open(encoding="utf-8") as file:
                ids.update(json.loads(line)["custom_id"] for line in file)
        return ids

    def write(self, content: dict[str, Any]) -> None:
        """Add a row; it stays whatever happens to the process afterwards."""
        if self._file is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file = self._unfinished.open("w", encoding="utf-8")
        self._file.write(json.dumps(content, ensure_ascii=False) + "\n")
        self._file.flush()
        self._num_rows += 1
        if self._num_rows >= ROWS_PER_PART:
            self.close()

    def close(self) -> None:
        """Give the last part its name."""
        if self._file is None:
            return
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        name_whole_file(self._unfinished, self._unfinished.with_suffix(""))
        self._number += 1
        self._num_rows = 0

    @property
    def _unfinished(self) -> Path:
        return self._directory / f"part-{self._shard:05}-{self._number:05}.jsonl{_UNFINISHED}"


def _keep_whole_lines(unfinished: Path) -> None:
    """What a process left that was killed in the middle of a line."""
    data = unfinished.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole:
        unfinished.write_bytes(whole)
        name_whole_file(unfinished, unfinished.with_suffix(""))
    else:
        unfinished.unlink()


def rows_of_requests(path: Path) -> Iterator[Row]:
    """Rows of a file in OpenAI's batch form. A line that is none is a row that will be an error.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _row_of_line(line, number)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def _row_of_line(line: bytes, number: int) -> Row:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        return _broken_row(f"line-{number}", f"Line {number} is not JSON: {error}.")
    if not isinstance(content, dict) or not isinstance(content.get("custom_id"), str):
        return _broken_row(f"line-{number}", f"Line {number} needs a custom_id, a text of its own.")
    identifier = content["custom_id"]
    unknown = sorted(content.keys() - {"custom_id", "method", "url", "body"})
    if unknown or content.get("method", "POST") != "POST" or content.get("url", _PATH) != _PATH:
        return _broken_row(
            identifier, f"Line {number} is no POST to {_PATH}, or holds other keys: {unknown}."
        )
    if not isinstance(content.get("body"), dict):
        return _broken_row(identifier, f"Line {number} needs a body, an object.")
    body = {**content["body"]}
    body.pop("model", None)  # one bundle answers
    return Row(identifier, json.dumps(body).encode)


def _broken_row(identifier: str, message: str) -> Row:
    def refuse() -> bytes:
        raise UserError(message)

    return Row(identifier, refuse)


def shard_of(rows: Iterable[Row], shard: int, num_shards: int) -> Iterator[Row]:
    """Every `num_shards`-th row from number `shard` on."""
    return (row for number, row in enumerate(rows) if number % num_shards == shard)


def run_batch(
    model: ServedModel, name: str, rows: Iterable[Row], parts: Parts, progress: Callable[[Tally], None]
) -> Tally:
    """Answer every row that is not answered yet.

    Twice as many are on their way as the engine has slots: pictures of the next are read meanwhile.
    """
    return asyncio.run(_run(model, name, rows, parts, progress))


async def _run(
    model: ServedModel, name: str, rows: Iterable[Row], parts: Parts, progress: Callable[[Tally], None]
) -> Tally:
    endpoint = ChatCompletions(model, name)
    done = parts.done()
    left = (row for row in rows if row.id not in done)
    tally, started = Tally(), time.monotonic()
    most = min(2 * model.settings.num_slots, model.settings.max_requests)
    watcher = asyncio.create_task(_watch(model, tally))
    try:
        async with aclosing(_answers(endpoint, left, most)) as answers:
            async for content in answers:
                parts.write(content)
                tally.num_rows += 1
                tally.num_errors += content["error"] is not None
                usage = content["response"]["body"].get("usage") or {}
                tally.num_new_tokens += usage.get("completion_tokens", 0)
                tally.seconds = time.monotonic() - started
                progress(tally)
    finally:
        watcher.cancel()
        parts.close()
        endpoint.close()
    tally.seconds = time.monotonic() - started
    return tally


async def _answers(
    endpoint: ChatCompletions, rows: Iterator[Row], most: int
) -> AsyncGenerator[dict[str, Any], None]:
    running: set[asyncio.Task[dict[str, Any]]] = set()
    is_open = True
    try:
        while is_open or running:
            while is_open and len(running) < most:
                row = next(rows, None)
                if row is None:
                    is_open = False
                else:
                    running.add(asyncio.create_task(_answer(endpoint, row)))
            if running:
                ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    yield task.result()
    finally:
        for task in running:
            task.cancel()


async def _answer(endpoint: ChatCompletions, row: Row) -> dict[str, Any]:
    """In OpenAI's batch form."""
    identifier = hashlib.sha256(row.id.encode("utf-8", "replace")).hexdigest()[:32]
    content: dict[str, Any]
    try:
        body = await asyncio.to_thread(row.body)
    except UserError as mistake:
        status, content = 400, {"error": {"message": str(mistake), "code": "invalid_row"}}
    else:
        status, content = await call_local(endpoint, body, identifier)
    error = content.get("error")
    return {
        "id": f"batch_req_{identifier}",
        "custom_id": row.id,
        "response": {"status_code": status, "request_id": identifier, "body": content},
        "error": error and {"code": error.get("code"), "message": error["message"]},
    }


async def _watch(model: ServedModel, tally: Tally) -> None:
    """Count how long slots are free."""
    step = 0.05
    while True:
        await asyncio.sleep(step)
        stats = model.service.stats()
        if stats.slots_used < stats.num_slots and not stats.queue_length:
            tally.waiting_seconds += step * (1 - stats.slots_used / stats.num_slots)
