"""`POST /v1/chat/completions`: from the body to the last byte of the answer, whole or streamed."""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from engines.runtime.answer import Event, Request
from engines.runtime.scheduler_limits import QueueFullError
from engines.runtime.sequence import Ticket
from engines.runtime.tokens.guided import Guide
from engines.runtime.tokens.text_stream import TextStream
from engines.serving.openai.answer.choices import ChatChoice, EndedError, usage_of
from engines.serving.openai.answer.mailbox import Mailbox
from engines.serving.openai.errors import ApiError, api_error
from engines.serving.openai.http.request_log import log_answer, request_id
from engines.serving.openai.http.wire import ClientLeftError, EventStream, Presence, read_body, watching
from engines.serving.openai.request.forms import asked_form
from engines.serving.openai.request.schema import ChatCompletionRequest, max_body_bytes, parse_body
from engines.serving.openai.request.tools import ToolCallReader, ToolWish, tool_wish
from engines.serving.openai.request.wishes import Wish, template_wish, wish_from_request
from engines.serving.room import Held
from engines.serving.served import ServedModel
from export.errors import UserError, is_request_to_stop
from export.inputs import SeenMedium

logger = logging.getLogger(__name__)

_Queue = asyncio.Queue[tuple[int, Event]]
_GRACE_SECONDS = 0.2
"""How long after its time a request waits for the engine to say so: it counts the tokens, but not within a call."""


@dataclass(eq=False)
class _Call:
    """One request on its way."""

    id: str
    received: float
    created: int
    num_choices: int = 0

    def head(self, kind: str, model: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{self.id}", "object": kind, "created": self.created, "model": model}


@dataclass(frozen=True)
class _Prepared:
    """What a body asks, ready for the engine."""

    asked: ChatCompletionRequest
    wish: Wish
    tools: ToolWish | None
    requests: list[Request]

    @property
    def media(self) -> Sequence[SeenMedium]:
        """What became of its pictures and videos."""
        return self.requests[0].inputs.media


class ChatCompletions:
    """The endpoint, an ASGI application.

    A request has a place from its first byte to its last, of as many as the engine and its queue hold; a thread reads
    and decodes what it sent, so that neither the event loop nor another request waits for its pictures.
    """

    def __init__(self, model: ServedModel, model_name: str) -> None:
        self._model, self._model_name = model, model_name
        self._threads = ThreadPoolExecutor(model.settings.max_requests, thread_name_prefix="request")
        self._mailbox: Mailbox | None = None
        self._num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = _Call(request_id(scope), time.monotonic(), int(time.time()))
        self._mailbox = self._mailbox or Mailbox(asyncio.get_running_loop())
        stream = EventStream(send, {"x-request-id": call.id})
        try:
            with self._model.room.held() as held:
                await read_body(scope, receive, max_body_bytes(self._model.limits), held)
                with self._place():
                    await self._serve(held, scope, receive, send, stream, call)
        except ClientLeftError:
            log_answer(call.id, "left", call.received)
        except BaseException as error:
            if is_request_to_stop(error) or isinstance(error, asyncio.CancelledError):
                raise
            await self._refuse(error, scope, receive, send, stream, call)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=True)

    async def _refuse(
        self,
        error: BaseException,
        scope: Scope,
        receive: Receive,
        send: Send,
        stream: EventStream,
        call: _Call,
    ) -> None:
        refusal = api_error(error)
        if refusal.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            logger.error("request %s failed", call.id, exc_info=error)
        log_answer(call.id, refusal.code or "refused", call.received, status=int(refusal.status))
        if stream.is_started:
            await stream.finish(refusal.content())
            return
        headers = {**refusal.headers, "x-request-id": call.id}
        await JSONResponse(refusal.content(), refusal.status, headers)(scope, receive, send)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """One of as many as the engine and its queue hold."""
        most = self._model.settings.max_requests
        if self._num_requests >= most:
            raise QueueFullError(f"{most} requests are being served. Try again later.")
        self._num_requests += 1
        try:
            yield
        finally:
            self._num_requests -= 1

    async def _serve(
        self,
        held: Held,
        scope: Scope,
        receive: Receive,
        send: Send,
        stream: EventStream,
        call: _Call,
    ) -> None:
        async with watching(receive) as presence:
            loop = asyncio.get_running_loop()
            prepared = await loop.run_in_executor(self._threads, self._prepare, held, call, presence)
            asked, wish, requests = prepared.asked, prepared.wish, prepared.requests
            held.give_back()
            if presence.has_left():
                raise ClientLeftError
            choices = [self._choice(index, prepared) for index in range(len(requests))]
            last_moment = call.received + wish.timeout_seconds + _GRACE_SECONDS
            queue, tickets = self._submit(requests, wish, call)
            presence.when_leaving(lambda: self._cancel(tickets))
            try:
                if asked.stream:
                    await self._stream(queue, choices, tickets, prepared, stream, call, last_moment)
                else:
                    await self._collect(queue, choices, tickets, last_moment)
                    content = {
                        **call.head("chat.completion", self._model_name),
                        "choices": [choice.content() for choice in choices],
                        "usage": usage_of(choices, prepared.media),
                    }
                    response = JSONResponse(content, headers={"x-request-id": call.id})
                    await response(scope, receive, send)
            except EndedError as error:
                if presence.has_left():
                    raise ClientLeftError from None
                raise _cut_short(error, choices, wish) from None
            finally:
                self._cancel(tickets)  # changes nothing after the end
        log_answer(call.id, "answered", call.received, choices=choices)

    def _prepare(self, held: Held, call: _Call, presence: Presence) -> "_Prepared":
        """In a thread: parse, fetch, decode, tokenize."""
        limits = self._model.limits
        with self._model.room.lane(held.num_bytes, limits.timeout_seconds, presence.has_left):
            asked = parse_body(held.take_body(), limits)
        if asked.model not in {None, self._model_name}:
            raise ApiError(
                HTTPStatus.NOT_FOUND,
                f"The model {asked.model!r:.80} is not here; this server has {self._model_name!r}.",
                "model",
                "model_not_found",
            )
        wish = wish_from_request(asked, self._model.defaults, self._model.limits)
        tools = tool_wish(asked, self._model.processor.template)
        template = template_wish(asked, tools, self._model.processor.template)
        guides = self._guides(asked, tools, len(wish.seeds))
        try:
            inputs = self._model.inputs(
                wish.messages,
                deadline=call.received + wish.timeout_seconds,
                is_cancelled=presence.has_left,
                budget=wish.budget,
                template=template,
            )
        except UserError as error:
            if presence.has_left():
                raise ClientLeftError from None
            raise api_error(error, "messages") from None
        requests = [
            Request(inputs, wish.config, seed, guide) for seed, guide in zip(wish.seeds, guides, strict=True)
        ]
        return _Prepared(asked, wish, tools, requests)

    def _guides(
        self, asked: ChatCompletionRequest, tools: ToolWish | None, number: int
    ) -> Sequence[Guide | None]:
        form = asked_form(asked, tools.form if tools else None)
        if form is None:
            return [None] * number
        try:
            return self._model.guides.guides(form.form, form.content, number)
        except UserError as error:
            raise api_error(error, form.param) from None

    def _choice(self, index: int, prepared: "_Prepared") -> ChatChoice:
        asked, wish = prepared.asked, prepared.wish
        tokenizer = self._model.processor.tokenizer
        skip = asked.skip_special_tokens is not False
        stream = TextStream(tokenizer, skip_special_tokens=skip, stop_strings=wish.stop_strings)
        return ChatChoice(
            index,
            stream,
            tokenizer,
            with_logprobs=bool(asked.logprobs),
            ends=wish.config.eos_token_ids,
            locate=partial(self._model.processor.located, media=prepared.requests[index].inputs.media),
            tools=ToolCallReader(prepared.tools.max_calls) if prepared.tools else None,
        )

    def _submit(self, requests: Sequence[Request], wish: Wish, call: _Call) -> tuple[_Queue, list[Ticket]]:
        """All or none."""
        assert self._mailbox is not None
        queue: _Queue = asyncio.Queue()
        tickets: list[Ticket] = []
        left_seconds = max(0.001, call.received + wish.timeout_seconds - time.monotonic())
        try:
            for index, request in enumerate(requests):
                listener = self._mailbox.listener(queue, index)
                tickets.append(self._model.service.submit(request, listener, deadline_seconds=left_seconds))
        except BaseException:
            self._cancel(tickets)
            raise
        return queue, tickets

    def _cancel(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            self._model.service.cancel(ticket)

    async def _collect(
        self, queue: _Queue, choices: list[ChatChoice], tickets: list[Ticket], last_moment: float
    ) -> None:
        num_open = len(choices)
        while num_open:
            index, event = await _next_event(queue, last_moment)
            if not choices[index].is_over and choices[index].push(event).is_last:
                self._cancel([tickets[index]])
                num_open -= 1

    async def _stream(
        self,
        queue: _Queue,
        choices: list[ChatChoice],
        tickets: list[Ticket],
        prepared: _Prepared,
        stream: EventStream,
        call: _Call,
        last_moment: float,
    ) -> None:
        head = call.head("chat.completion.chunk", self._model_name)
        options = prepared.asked.stream_options
        with_usage = options is not None and options.include_usage
        is_continuous = options is not None and options.include_usage and options.continuous_usage_stats
        if with_usage:
            head["usage"] = None
        num_open = len(choices)
        opened: set[int] = set()
        while num_open:
            index, event = await _next_event(queue, last_moment)
            choice = choices[index]
            if choice.is_over:
                continue
            piece = choice.push(event)
            chunks = [] if index in opened else [choice.opening()]
            opened.add(index)
            if piece.text or piece.logprobs or piece.calls:
                chunks.append(choice.chunk(piece))
            if piece.is_last:
                self._cancel([tickets[index]])
                num_open -= 1
                chunks.append(choice.closing())
            if is_continuous:
                head["usage"] = usage_of(choices, ())
            if chunks:
                await stream.write(*({**head, "choices": [chunk]} for chunk in chunks))
        usage = [{**head, "choices": [], "usage": usage_of(choices, prepared.media)}] if with_usage else []
        await stream.finish(*usage)


async def _next_event(queue: _Queue, last_moment: float) -> tuple[int, Event]:
    """What an answer says next.

    The engine looks at deadlines between its calls, and a call over other requests' pictures may take a second.

    Raises:
        EndedError: nothing came until the last moment, on the monotonic clock.
    """
    if not queue.empty():
        return queue.get_nowait()
    try:
        async with asyncio.timeout(last_moment - time.monotonic()):
            return await queue.get()
    except TimeoutError:
        raise EndedError("deadline") from None


def _cut_short(error: EndedError, choices: list[ChatChoice], wish: Wish) -> ApiError:
    num_tokens = sum(choice.timings.num_new_tokens for choice in choices if choice.timings)
    if error.reason == "deadline":
        return ApiError(
            HTTPStatus.REQUEST_TIMEOUT,
            f"The answer was not finished within {wish.timeout_seconds:g} s, after {num_tokens} tokens. Ask for fewer "
            "(max_completion_tokens) or allow more time (timeout).",
            "timeout",
            "deadline",
        )
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"The server ended the answer after {num_tokens} tokens: it is shutting down.",
        code="shutting_down",
    )
