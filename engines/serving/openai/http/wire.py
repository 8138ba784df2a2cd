"""Bytes in and out: a body that is bounded while it is read, whether the client is still there, server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from starlette.types import Receive, Scope, Send

from engines.serving.openai.errors import ApiError
from engines.serving.room import Held

BODY_SECONDS = 60.0
"""How long a body may take to arrive."""
SEND_SECONDS = 60.0
"""How long a client may take nothing of a stream before it counts as gone."""

_ENCODE = json.JSONEncoder(separators=(",", ":")).encode  # made once: json.dumps makes one for each event
_STREAM_HEADERS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store"))


async def read_body(scope: Scope, receive: Receive, max_bytes: int, held: Held) -> None:
    """Read the whole body into `held`.

    Raises:
        ApiError: it is larger than the server takes, or does not come.
        NoRoomError: others hold too much.
        ClientLeftError: the client went away.
    """
    too_large = ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"The body is larger than the {max_bytes} bytes that this server takes. Send fewer or smaller pictures.",
        code="body_too_large",
        headers={"connection": "close"},
    )
    declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if int(declared) > max_bytes:
        raise too_large
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeftError
                if held.add(message.get("body", b"")) > max_bytes:
                    raise too_large
                if not message.get("more_body"):
                    return
    except TimeoutError:
        raise ApiError(
            HTTPStatus.REQUEST_TIMEOUT,
            f"The body did not arrive within {BODY_SECONDS:g} s.",
            code="body_timeout",
            headers={"connection": "close"},
        ) from None


class ClientLeftError(Exception):
    """Nobody is there to be answered."""


class Presence:
    """Whether a client is still there; its `has_left` may be asked from any thread."""

    def __init__(self) -> None:
        self._has_left = False
        self._leaving: list[Callable[[], None]] = []

    def has_left(self) -> bool:
        return self._has_left

    def when_leaving(self, call: Callable[[], None]) -> None:
        """Call it when the client leaves, or now if it left."""
        self._leaving.append(call)
        if self._has_left:
            call()

    def leave(self) -> None:
        self._has_left = True
        for call in self._leaving:
            call()


@asynccontextmanager
async def watching(receive: Receive) -> AsyncIterator[Presence]:
    """Watch a client whose body was read."""
    presence = Presence()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        presence.leave()

    task = asyncio.create_task(watch())
    try:
        yield presence
    finally:
        task.cancel()


class EventStream:
    """Server-sent events: the status line goes out with the first of them."""

    def __init__(self, send: Send, headers: dict[str, str]) -> None:
        self._send = send
        self._headers = [
            *_STREAM_HEADERS,
            *((name.encode(), value.encode()) for name, value in headers.items()),
        ]
        self.is_started = False

    async def write(self, *contents: Any) -> None:
        """Send JSON values, each as one event."""
        await self._write(b"".join(map(_event, contents)), more_body=True)

    async def finish(self, *contents: Any) -> None:
        """Send the last ones and OpenAI's end mark."""
        await self._write(b"".join(map(_event, contents)) + b"data: [DONE]\n\n", more_body=False)

    async def _write(self, data: bytes, *, more_body: bool) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                if not self.is_started:
                    self.is_started = True
                    await self._send(
                        {"type": "http.response.start", "status": HTTPStatus.OK, "headers": self._headers}
                    )
                await self._send({"type": "http.response.body", "body": data, "more_body": more_body})
        except TimeoutError:
            raise ClientLeftError from None


def _event(content: Any) -> bytes:
    return b"data: " + _ENCODE(content).encode() + b"\n\n"
