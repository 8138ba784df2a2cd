"""Room for what requests hold until they are read: bodies and files of all together, and one large one at a time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engines.runtime.scheduler_limits import TryLaterError

FREE_BYTES = 1 << 16
"""Of each request, not counted: a question without a picture finds room whatever others send."""
SMALL_BYTES = 1 << 20
_RESERVE_BYTES = 64 << 20
"""For small requests alone, where large ones hold all the rest."""
_POLL_SECONDS = 0.05
_LANE_SECONDS = 5.0
"""The longest wait to be read: what a request asks of its own time is not known before."""


class NoRoomError(TryLaterError):
    """Other requests hold as much as the server takes at the same time."""


class Room:
    """Bytes that requests hold at the same time, over all of them.

    Args:
        max_bytes: of all; one request alone may exceed it, as its own limits say.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock, self._lane = threading.Lock(), threading.Lock()
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Held now, without what is free."""
        return self._num_bytes

    @contextmanager
    def held(self) -> Iterator["Held"]:
        """What one request holds, given back at the end."""
        held = Held(self)
        try:
            yield held
        finally:
            held.give_back()

    @contextmanager
    def lane(
        self, num_bytes: int, deadline_seconds: float, is_cancelled: Callable[[], bool]
    ) -> Iterator[None]:
        """Wait until no other large request is being read: each takes the interpreter, and copies of itself.

        Args:
            num_bytes: of this one; a small one does not wait.
            deadline_seconds: to wait at most.
            is_cancelled: looked at meanwhile.

        Raises:
            NoRoomError: the deadline came first, or the client left.
        """
        if num_bytes <= SMALL_BYTES:
            yield
            return
        deadline_seconds = min(deadline_seconds, _LANE_SECONDS)
        while not self._lane.acquire(timeout=min(_POLL_SECONDS, max(deadline_seconds, 0.0))):
            deadline_seconds -= _POLL_SECONDS
            if deadline_seconds <= 0 or is_cancelled():
                raise NoRoomError("Other large requests are being read. Try again later, or send less.")
        try:
            yield
        finally:
            self._lane.release()

    def take(self, num_bytes: int, *, is_small: bool) -> None:
        """Hold as many more, for a small request or a large one.

        Raises:
            NoRoomError: others hold too much.
        """
        with self._lock:
            most = self._max_bytes + is_small * _RESERVE_BYTES
            if self._num_bytes and self._num_bytes + num_bytes > most:
                raise NoRoomError(
                    f"Requests with {self._num_bytes} bytes of pictures and videos are being read, of at most "
                    f"{self._max_bytes}. Try again later, or send less."
                )
            self._num_bytes += num_bytes

    def give(self, num_bytes: int) -> None:
        """Hold as many less."""
        with self._lock:
            self._num_bytes -= num_bytes


class Held:
    """What one request holds."""

    def __init__(self, room: Room) -> None:
        self._room, self._num_bytes = room, 0
        self._body = bytearray()

    def add(self, piece: bytes) -> int:
        """Take a piece of the body, and return how many bytes it has now.

        Raises:
            NoRoomError: there is no room for it.
        """
        self._body += piece
        self.grow_to(len(self._body))
        return len(self._body)

    def take_body(self) -> bytearray:
        """The body, which is then held by the caller alone, so that it can be freed once it is read."""
        body, self._body = self._body, bytearray()
        return body

    def grow_to(self, num_bytes: int) -> None:
        """The request has as many bytes now.

        Raises:
            NoRoomError: there is no room for them.
        """
        more = max(num_bytes - FREE_BYTES, 0) - self._num_bytes
        if more > 0:
            self._room.take(more, is_small=num_bytes <= SMALL_BYTES)
            self._num_bytes += more

    @property
    def num_bytes(self) -> int:
        """Of the body."""
        return len(self._body)

    def give_back(self) -> None:
        """The request was read."""
        self._room.give(self._num_bytes)
        self._num_bytes = 0
