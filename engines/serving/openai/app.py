"""Every address of the server: the chat API, the model's name, health, versions, metrics, the schema, the page."""

import time
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from importlib.metadata import version

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engines.serving.openai.chat import ChatCompletions
from engines.serving.openai.errors import ApiError
from engines.serving.openai.http.keys import KeyGuard
from engines.serving.openai.http.metrics import SchedulerCollector
from engines.serving.openai.page.routes import page_routes
from engines.serving.openai.request.openapi import openapi_schema
from engines.serving.served import ServedModel

_Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(
    model: ServedModel,
    name: str,
    keys: Sequence[str] = (),
    *,
    with_page: bool = True,
    origins: Sequence[str] = (),
) -> Starlette:
    """The ASGI application over an open model.

    Args:
        model: warm; whoever opened it closes it, after the application's last answer.
        name: what clients call it.
        keys: of those who may ask; none: everybody.
        with_page: whether `/` is a page that asks.
        origins: of pages elsewhere whose scripts may ask, as browsers name them; `*`: of all.
    """
    chat = ChatCompletions(model, name)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", _models(model, name)),
            Route("/v1/models/{model:path}", _models(model, name)),
            *(Route(path, _refusal(path, instead), methods=_METHODS) for path, instead in _ELSEWHERE.items()),
            Route("/health", _health),
            Route("/ready", _ready(model)),
            Route("/version", _version),
            Route("/metrics", _metrics(model, name)),
            Route("/openapi.json", _openapi),
            *(page_routes() if with_page else ()),
        ],
        middleware=[
            # Before the keys: a browser's question whether it may ask holds none.
            *([_cross_origin(origins)] if origins else []),
            *([Middleware(KeyGuard, keys=keys)] if keys else []),
        ],
        exception_handlers={HTTPException: _http_error},
    )
    app.state.chat = chat
    return app


def _cross_origin(origins: Sequence[str]) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("authorization", "content-type", "x-request-id"),
        expose_headers=("x-request-id", "retry-after"),
    )


def _models(model: ServedModel, name: str) -> _Endpoint:
    created = int(time.time())
    card = {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "qv-export",
        "max_model_len": model.settings.capacity,
    }

    async def models(request: Request) -> Response:
        asked = str(request.path_params.get("model", "")).strip("/")
        if not asked:
            return JSONResponse({"object": "list", "data": [card]})
        if asked == name:
            return JSONResponse(card)
        return _error(HTTPStatus.NOT_FOUND, f"The model {asked!r:.80} is not here; this server has {name!r}.")

    return models


_METHODS = ("GET", "POST")
_CHAT = "POST /v1/chat/completions, with a conversation in `messages`"
_ELSEWHERE = {
    "/v1/completions": _CHAT,
    "/v1/responses": _CHAT,
    "/v1/messages": _CHAT,
    "/v1/embeddings": None,
    "/v1/images/generations": None,
    "/v1/audio/transcriptions": None,
    "/v1/files": None,
    "/v1/batches": "`qv-export batch`, which takes OpenAI's batch files",
}
"""What other servers of this API have and this one has not, and what to ask in its place."""


def _refusal(path: str, instead: str | None) -> _Endpoint:
    words = f"Use {instead}." if instead else f"It answers {_CHAT}."

    async def refuse(_: Request) -> Response:
        return _error(HTTPStatus.NOT_FOUND, f"This server has no {path}. {words}")

    return refuse


async def _health(_: Request) -> Response:
    """The process answers."""
    return JSONResponse({"status": "ok"})


def _ready(model: ServedModel) -> _Endpoint:
    async def ready(_: Request) -> Response:
        if model.service.scheduler.is_draining:
            return JSONResponse({"status": "shutting down"}, HTTPStatus.SERVICE_UNAVAILABLE)
        return JSONResponse({"status": "ready", "warm_up_seconds": round(model.warm_up_seconds, 3)})

    return ready


async def _version(_: Request) -> Response:
    return JSONResponse({"version": version("qv-export"), "onnxruntime": version("onnxruntime")})


def _metrics(model: ServedModel, name: str) -> _Endpoint:
    registry = CollectorRegistry()
    registry.register(SchedulerCollector(model.service.stats, name))

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return metrics


async def _openapi(_: Request) -> Response:
    return JSONResponse(openapi_schema())


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router refuses, in the form of all other errors."""
    assert isinstance(error, HTTPException)
    status, headers = HTTPStatus(error.status_code), dict(error.headers or {})
    words = error.detail
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        words = f"{request.method} is not taken here, {headers.get('Allow', 'another method')} is."
    elif status == HTTPStatus.NOT_FOUND:
        words = f"Nothing is at {request.url.path!r:.80}. GET /openapi.json lists what there is."
    return _error(status, words, headers)


def _error(status: HTTPStatus, message: str, headers: dict[str, str] | None = None) -> Response:
    code = status.phrase.lower().replace(" ", "_")
    return JSONResponse(ApiError(status, message, code=code).content(), status, headers)
