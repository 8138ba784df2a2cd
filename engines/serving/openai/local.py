"""Requests of OpenAI's API without a network: what a corpus asks means what it means over HTTP."""

import asyncio
import json
from typing import Any

from starlette.types import ASGIApp, Message


async def call_local(app: ASGIApp, body: bytes, identifier: str) -> tuple[int, dict[str, Any]]:
    """Ask `POST /v1/chat/completions` of an application in this process.

    Args:
        app: the endpoint.
        body: JSON.
        identifier: the request's id.

    Returns:
        Status and content of the answer.
    """
    status, pieces = 500, []
    is_sent = False

    async def receive() -> Message:
        nonlocal is_sent
        if is_sent:
            await asyncio.Event().wait()  # this client stays until it is answered
        is_sent = True
        return {"type": "http.request", "body": body}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            pieces.append(message.get("body", b""))

    headers = [(b"x-request-id", identifier.encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
    await app(scope, receive, send)
    content: dict[str, Any] = json.loads(b"".join(pieces))
    return status, content
