"""How ranks speak to each other: whole messages from one to another, over MPI."""

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from engines.parallel.mpi import MpiCommunicator

if TYPE_CHECKING:
    from mpi4py import MPI

_YIELD_SECONDS = 100e-6
_LONGEST_PAUSE_SECONDS = 5e-3
_PAUSE_SHARE = 0.125
"""Of what was waited already: what a pause may add to it."""


class Peers(Protocol):
    """The ranks of a group as one of them sees them. Messages from one rank to another come in order."""

    @property
    def rank(self) -> int:
        """Its own number."""
        ...

    @property
    def size(self) -> int: ...

    def send(self, to: int, message: Any) -> None:
        """Hand a message on, and do not wait until it has come."""
        ...

    def receive(self, origin: int) -> Any:
        """The next message of a rank, waited for without end: a group starts and ends as one."""
        ...


class MpiPeers:
    """See `Peers`. For one thread.

    MPI itself waits by asking without a pause, which takes a whole core of a server that has nothing to do.
    """

    def __init__(self, world: "MPI.Comm") -> None:
        self._world = world
        self._sent: list[MPI.Request] = []

    @property
    def rank(self) -> int:
        return self._world.Get_rank()

    @property
    def size(self) -> int:
        return self._world.Get_size()

    def send(self, to: int, message: Any) -> None:
        """See `Peers.send`."""
        self._sent = [request for request in self._sent if not request.Test()]
        self._sent.append(self._world.isend(message, to))

    def receive(self, origin: int) -> Any:
        """See `Peers.receive`."""
        return waited_for(lambda: self._world.improbe(origin)).recv()

    def divided(self, color: int) -> MpiCommunicator:
        """The ranks of the group that give the same color, in the order of their numbers; every rank must call it."""
        return MpiCommunicator(self._world.Split(color, self.rank))

    def flush(self) -> None:
        """Wait until every message sent has been taken."""
        waited_for(lambda: all(request.Test() for request in self._sent) or None)
        self._sent.clear()


def waited_for(ask: Callable[[], Any]) -> Any:
    """Ask until there is an answer, ever less often: the longer the wait, the less a short pause adds to it."""
    start = time.perf_counter()
    while (found := ask()) is None:
        waited = time.perf_counter() - start
        if waited < _YIELD_SECONDS:
            os.sched_yield()
        else:
            time.sleep(min(waited * _PAUSE_SHARE, _LONGEST_PAUSE_SECONDS))
    return found
