"""Errors in OpenAI's form, `{"error": {"message", "type", "param", "code"}}`, with the status that clients expect."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from engines.runtime.lost import EngineLostError
from engines.runtime.scheduler_limits import DrainingError, TryLaterError
from export.errors import UserError

RETRY_SECONDS = 1
"""What `Retry-After` says: an answer of usual length makes room within it."""
FAULT = "a fault of the server; its log says more under this request's id"
"""All that a client learns of an error that is not its own."""


@dataclass(eq=False)
class ApiError(Exception):
    """An answer that is an error."""

    status: HTTPStatus
    message: str
    param: str | None = None
    """The field of the request that is wrong."""
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def content(self) -> dict[str, Any]:
        """The body."""
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }


_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.REQUEST_TIMEOUT: "timeout_error",
    HTTPStatus.INTERNAL_SERVER_ERROR: "server_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "server_error",
}


def api_error(error: BaseException, param: str | None = None) -> ApiError:
    """What a client is told of an error: its own mistakes in full, of others that there was one."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return ApiError(HTTPStatus.BAD_REQUEST, str(error), param, "invalid_value")
    if isinstance(error, EngineLostError):
        return ApiError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{error}. Send the request again.",
            code="engine_lost",
            headers={"retry-after": str(RETRY_SECONDS)},
        )
    if isinstance(error, TryLaterError):
        is_ending = isinstance(error, DrainingError)
        return ApiError(
            HTTPStatus.SERVICE_UNAVAILABLE if is_ending else HTTPStatus.TOO_MANY_REQUESTS,
            str(error),
            code="shutting_down" if is_ending else "queue_full",
            headers={"retry-after": str(RETRY_SECONDS)},
        )
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, FAULT, code="internal_error")
