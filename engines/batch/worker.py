"""A worker that answers rows: it can be pickled, and opens its model where and when it is first asked.

So it is what is sent to another process or another machine. It needs no torch.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.backends import BACKENDS
from engines.batch.answers import Answered, Waiting, answers_here
from engines.batch.rows import Given, Row, is_video, media_request
from engines.open import Choice, choose_engine
from engines.serving.served import ServedModel
from engines.serving.settings import ServerSettings, settings_for
from engines.store.compatibility import this_machine
from export.bundle import Bundle, open_bundle
from export.errors import UserError


@dataclass(frozen=True)
class ModelChoice:
    """Which model answers, and how much at once."""

    bundle: Path
    engine: str | None = None
    """A backend's name or an engine's key; None: the default backend."""
    num_slots: int | None = None
    max_context: int | None = None
    num_threads: int | None = None
    num_ranks: int | None = None
    hostfile: Path | None = None

    def resolve(self) -> tuple[Bundle, Choice, ServerSettings]:
        """What would be opened, without opening it.

        Raises:
            UserError: no such bundle or engine, or values out of range.
        """
        bundle = open_bundle(self.bundle)
        settings = settings_for(
            bundle,
            None if self.engine in BACKENDS else self.engine,
            num_slots=self.num_slots,
            max_context=self.max_context,
            num_threads=self.num_threads,
            num_ranks=self.num_ranks,
            hostfile=self.hostfile,
            max_queue=None,
            allowed_hosts=(),
        )
        chosen = choose_engine(
            bundle,
            self.engine,
            num_slots=settings.num_slots,
            capacity=settings.capacity,
            machine=this_machine(),
        )
        return bundle, chosen, settings

    def open(self) -> tuple[ServedModel, str]:
        """The model, warm, and its name; whoever opens it closes it.

        Raises:
            UserError: as `resolve`, or this machine cannot load the engine.
        """
        bundle, chosen, settings = self.resolve()
        return ServedModel(bundle, chosen, settings), bundle.manifest.source.name


class BatchWorker:
    """Answers batches of rows in the process that it finds itself in.

    As a callable it is what Ray Data's `map_batches`, Spark's `mapInPandas` and their like take: columns in, columns
    out. It may be pickled before its first call.

    Args:
        model: which model answers.
        prompt: asked about every picture of a batch that has no requests of its own.
        fields: of every such request, beside its messages, such as `max_completion_tokens`.
        is_prompt_first: whether the prompt stands before the picture.
    """

    def __init__(
        self,
        model: ModelChoice | str | Path,
        prompt: str | None = None,
        fields: Mapping[str, Any] | None = None,
        *,
        is_prompt_first: bool = False,
    ) -> None:
        self.choice = model if isinstance(model, ModelChoice) else ModelChoice(Path(model))
        self.prompt, self.fields, self.is_prompt_first = prompt, dict(fields or {}), is_prompt_first
        self._open: tuple[ServedModel, str] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": None, "_loop": None}

    def answer(self, rows: Sequence[Row]) -> list[Answered]:
        """Every row's answer, in the order in which they came to an end.

        Raises:
            UserError: the model cannot be opened here. What is wrong with a row is its answer.
        """
        self._open = self._open or self.choice.open()
        self._loop = self._loop or asyncio.new_event_loop()
        return self._loop.run_until_complete(self._answer(rows))

    async def _answer(self, rows: Sequence[Row]) -> list[Answered]:
        assert self._open is not None
        return [one async for one in answers_here(*self._open, iter(rows), Waiting())]

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Answer a batch.

        Args:
            batch: columns `bytes`, a file each, and `path` or `id`; or `request`, JSON of a request's body, and `id`.

        Returns:
            Columns `id`, `answer` (None for an error), `error` (None for an answer), `new_tokens`.

        Raises:
            UserError: no prompt and no requests, or the model cannot be opened here.
        """
        if "request" not in batch and self.prompt is None:
            raise UserError(
                "A batch of files needs a prompt: BatchWorker(bundle, prompt), or give a column `request`."
            )
        ids = [str(one) for one in (batch["id"] if "id" in batch else batch["path"])]
        requests = batch["request"] if "request" in batch else map(self._request, ids, batch["bytes"])
        rows = [Row(name, Given(_as_bytes(request))) for name, request in zip(ids, requests, strict=True)]
        found = {one.row.id: one for one in self.answer(rows)}
        columns: dict[str, list[Any]] = {"id": ids, "answer": [], "error": [], "new_tokens": []}
        for name in ids:
            one = found[name]
            choices = one.content["response"]["body"].get("choices")
            columns["answer"].append(choices[0]["message"]["content"] if choices else None)
            columns["error"].append(one.content["error"]["message"] if one.is_error else None)
            columns["new_tokens"].append(one.num_new_tokens)
        return columns

    def _request(self, name: str, data: bytes) -> bytes:
        assert self.prompt is not None
        request = media_request(
            bytes(data), is_video(name), self.prompt, self.fields, is_prompt_first=self.is_prompt_first
        )
        return json.dumps(request).encode()

    def close(self) -> None:
        """End the model; the next call opens it anew."""
        if self._open is not None:
            self._open[0].close()
        if self._loop is not None:
            self._loop.close()
        self._open = self._loop = None


def _as_bytes(request: str | bytes) -> bytes:
    return request.encode() if isinstance(request, str) else bytes(request)
