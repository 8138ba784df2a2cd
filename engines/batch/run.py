"""A run over a corpus: what is not answered yet is answered, written as it comes, and counted."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

from engines.batch.answers import Answered, Waiting
from engines.batch.parts import Parts
from engines.batch.rows import Row, dearest_first

Answers = Callable[[Iterator[Row], Waiting], AsyncGenerator[Answered, None]]
"""What answers rows: this process, several, or a cluster."""


@dataclass
class Tally:
    """What was done so far."""

    num_all: int
    """Rows that this run has to answer."""
    num_rows: int = 0
    num_errors: int = 0
    num_media: int = 0
    """Pictures and videos that were answered about."""
    num_new_tokens: int = 0
    seconds: float = 0.0
    waiting_seconds: float = 0.0
    """While which an engine had free slots and nothing to put into them: pictures were being read."""

    @property
    def seconds_left(self) -> float:
        """If the rest goes on as it went."""
        return self.seconds / self.num_rows * (self.num_all - self.num_rows) if self.num_rows else 0.0

    def add(self, one: Answered) -> None:
        self.num_rows += 1
        self.num_errors += one.is_error
        self.num_media += 0 if one.is_error else one.row.num_media
        self.num_new_tokens += one.num_new_tokens


def run_batch(
    answers: Answers, rows: Iterable[Row], parts: Parts, progress: Callable[[Tally], None]
) -> Tally:
    """Answer every row that is not answered yet.

    Args:
        answers: what answers.
        rows: of the corpus, or of this run's shard.
        parts: where answers go, and where those are that were there before.
        progress: told after each row.
    """
    return asyncio.run(_run(answers, rows, parts, progress))


async def _run(
    answers: Answers, rows: Iterable[Row], parts: Parts, progress: Callable[[Tally], None]
) -> Tally:
    done = parts.done()
    left = [row for row in rows if row.id not in done]
    tally, waiting, started = Tally(len(left)), Waiting(), time.monotonic()
    try:
        async with aclosing(answers(dearest_first(left), waiting)) as found:
            async for one in found:
                parts.write(one.content)
                tally.add(one)
                tally.seconds = time.monotonic() - started
                progress(tally)
    finally:
        parts.close()
    tally.seconds, tally.waiting_seconds = time.monotonic() - started, waiting.seconds
    return tally
