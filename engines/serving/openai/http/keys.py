"""Who may ask: API keys, compared in constant time."""

import hashlib
import hmac
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from engines.serving.openai.errors import ApiError
from export.errors import UserError

_LEAST_CHARACTERS = 16
_GUARDED = "/v1/"


def read_keys(path: Path) -> tuple[str, ...]:
    """Keys of a file, one a line; empty lines and those that begin with # are none.

    Raises:
        UserError: it cannot be read, holds no key, or a key that is too short or no ASCII.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"The API keys in {path} cannot be read: {reason}.",
            "Give a text file with one key a line; `openssl rand -hex 32` makes one.",
        ) from None
    return checked_keys(
        [line.strip() for line in lines if line.strip() and not line.startswith("#")], str(path)
    )


def checked_keys(keys: Sequence[str], source: str) -> tuple[str, ...]:
    """Keys that may be used.

    Raises:
        UserError: none, or one that is too short or not printable ASCII; never the key itself.
    """
    if not keys:
        raise UserError(
            f"{source} holds no API key.", "Write one a line, or leave it out to serve whoever asks."
        )
    for number, key in enumerate(keys, 1):
        if len(key) < _LEAST_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(
                f"API key {number} of {source} must be at least {_LEAST_CHARACTERS} printable ASCII characters without "
                "spaces. `openssl rand -hex 32` makes one."
            )
    return tuple(keys)


class KeyGuard:
    """Lets requests to /v1 through whose bearer token is one of the keys; health and metrics are open."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_GUARDED) and not self._may(scope):
            refusal = ApiError(
                HTTPStatus.UNAUTHORIZED,
                "This server asks for an API key: Authorization: Bearer KEY.",
                code="invalid_api_key",
            )
            headers = {"www-authenticate": "Bearer", "connection": "close"}
            await JSONResponse(refusal.content(), refusal.status, headers)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _may(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, token = given.partition(b" ")
        asked = _digest(token.strip())
        # All are compared, and by digest: neither a key's length nor its place can be told from the time.
        matches = [hmac.compare_digest(asked, digest) for digest in self._digests]
        return kind.lower() == b"bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
