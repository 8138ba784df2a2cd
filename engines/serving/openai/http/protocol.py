"""HTTP connections of `serve`: uvicorn's, with a bound on how long a request's head may take to come."""

import asyncio
import contextlib
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""From the connection, or from the first byte of a further request on it, to the end of the head."""


class BoundedProtocol(H11Protocol):
    """One connection. A client that opens it and says nothing, or a letter a minute, is hung up on."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:  # asyncio's own, untyped in uvicorn
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the time only while no request is being read or answered."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._head_timer is None:
            self._expect_head()

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._hang_up)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _hang_up(self) -> None:
        self._head_timer = None
        is_at_work = self.cycle is not None and not self.cycle.response_complete
        if not is_at_work and not self.transport.is_closing():
            with contextlib.suppress(RuntimeError):  # the loop is ending
                self.transport.close()
