"""One process that listens: a bundle's model behind uvicorn, from the first connection to the drained end."""

import contextlib
import logging
import resource
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette

from engines.open import Choice
from engines.serving.openai.app import make_app
from engines.serving.openai.http.protocol import BoundedProtocol
from engines.serving.served import ServedModel
from engines.serving.settings import ServerSettings
from export.bundle import Bundle
from export.errors import UserError

_KEEP_ALIVE_SECONDS = 30
_FILES_KEPT = 256
"""Of what the process may open: weights, media processes, logs."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; port 0 takes a free one.

    Raises:
        UserError: the address is no address of this machine, or is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        raise UserError(
            f"{host} port {port} cannot be listened on: {error}.", "Choose another --host or --port."
        ) from None
    return found


@dataclass(frozen=True)
class Listening:
    """A server that takes requests."""

    address: str
    """Such as http://127.0.0.1:8000."""
    model_name: str
    engine_key: str
    settings: ServerSettings
    warm_up_seconds: float


def serve_bundle(
    bundle: Bundle,
    chosen: Choice,
    settings: ServerSettings,
    *,
    host: str,
    port: int,
    model_name: str,
    keys: Sequence[str] = (),
    with_page: bool = True,
    origins: Sequence[str] = (),
    when_listening: Callable[[Listening], None],
) -> None:
    """Answer until the process is asked to end (SIGTERM, SIGINT); then finish what was taken, as long as the settings
    allow, and leave by that signal's way.

    Args:
        bundle: opened.
        chosen: what computes.
        settings: slots, context, and the bounds on requests.
        host, port: where to listen; port 0 takes a free one.
        model_name: what clients call the model.
        keys: of those who may ask; none: anybody.
        with_page: whether the page at / is there.
        origins: of pages whose scripts may ask.
        when_listening: told once the model is warm and connections are taken.

    Raises:
        UserError: the address cannot be listened on, or this machine cannot load the engine.
    """
    # Bound before the model is loaded, so that a port that is taken is told at once; it listens when it is warm.
    with listen(host, port) as listener, ServedModel(bundle, chosen, settings) as model:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}"
        listening = Listening(address, model_name, chosen.key, settings, model.warm_up_seconds)
        app = make_app(model, model_name, keys, with_page=with_page, origins=origins)
        server = _Server(_configuration(app, settings), model, lambda: when_listening(listening))
        try:
            server.run([listener])
        finally:
            model.close()
            app.state.chat.close()


def _configuration(app: Starlette, settings: ServerSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level=logging.WARNING,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(round(settings.drain_seconds), 1),
        limit_concurrency=_most_connections(),
    )


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, model: ServedModel, when_listening: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._model, self._when_listening = model, when_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say so once connections are taken."""
        await super().startup(sockets)
        self._when_listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new, on connections that stay open either; the answers being written go on meanwhile."""
        self._model.service.scheduler.drain()
        await super().shutdown(sockets)


def _most_connections() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OverflowError):
        return max(min(limit - _FILES_KEPT, 4096), 64)
    return 4096
