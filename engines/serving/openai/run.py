"""One process that listens: uvicorn around the application, from the first connection to the drained end."""

import contextlib
import logging
import resource
import socket
from collections.abc import Callable, Sequence

import uvicorn

from engines.serving.openai.app import make_app
from engines.serving.openai.http.protocol import BoundedProtocol
from engines.serving.served import ServedModel
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


def serve(
    model: ServedModel,
    name: str,
    listener: socket.socket,
    when_listening: Callable[[], None],
    keys: Sequence[str] = (),
    *,
    with_page: bool = True,
    origins: Sequence[str] = (),
) -> None:
    """Answer until the process is asked to end (SIGTERM, SIGINT); then finish what was taken, as long as the settings
    allow, and leave by that signal's way.
    """
    app = make_app(model, name, keys, with_page=with_page, origins=origins)
    server = _Server(
        uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level=logging.WARNING,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(round(model.settings.drain_seconds), 1),
            limit_concurrency=_most_connections(),
        ),
        model,
        when_listening,
    )
    try:
        server.run([listener])
    finally:
        model.close()
        app.state.chat.close()


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
