"""Turns of pictures and videos that wait to be decoded, where there are more than processes for them.

Small things go before large ones, and whoever has waited goes before who came later: a request's own media take turns
with those of others, and large pictures and films leave a place to the small ones, whatever
they hold on to.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_POLL_SECONDS = 0.1
_PATIENCE_SECONDS = 1.0
"""After which nobody passes one that waits for room, or is longer."""
_WEIGHT = 10
"""How many times its own length a job lets shorter ones pass: those who wait least for it are served first."""


class NoTurnError(Exception):
    """The deadline came or the client left before there was a place."""


SMALL, LARGE, FILM = 0, 1, 2
"""Sizes of jobs. One place is never given to a large one or a film, and one of three never to a film."""


@dataclass(frozen=True)
class Cost:
    """What a job is thought to take."""

    seconds: float
    pixels: int
    size: int = SMALL


@dataclass(eq=False)
class _Waiting:
    cost: Cost
    spent_seconds: float
    since: float = field(default_factory=time.monotonic)

    def key(self, now: float) -> float:
        longer = min(_WEIGHT * self.cost.seconds, _PATIENCE_SECONDS)
        return self.spent_seconds + longer - (now - self.since)


class Turns:
    """Places for jobs, by number and by the pixels that are decoded at the same time."""

    def __init__(self, num_places: int, max_pixels: int) -> None:
        self._num_places, self._max_pixels = num_places, max_pixels
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._running: list[Cost] = []

    @contextmanager
    def turn(
        self, cost: Cost, spent_seconds: float, deadline: float, is_cancelled: Callable[[], bool]
    ) -> Iterator[None]:
        """Wait for a place and hold it.

        Args:
            cost: of this job.
            spent_seconds: what jobs of the same request took so far.
            deadline: on the monotonic clock.
            is_cancelled: looked at while waiting.

        Raises:
            NoTurnError: the deadline came first, or the client left.
        """
        self._enter(_Waiting(cost, spent_seconds), deadline, is_cancelled)
        try:
            yield
        finally:
            with self._changed:
                self._running.remove(cost)
                self._changed.notify_all()

    def _enter(self, mine: _Waiting, deadline: float, is_cancelled: Callable[[], bool]) -> None:
        with self._changed:
            self._waiting.append(mine)
            try:
                while self._next() is not mine:
                    if is_cancelled() or time.monotonic() >= deadline:
                        raise NoTurnError
                    self._changed.wait(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
                self._running.append(mine.cost)
            finally:
                self._waiting.remove(mine)
                self._changed.notify_all()

    def _next(self) -> _Waiting | None:
        """Who may run now."""
        if len(self._running) >= self._num_places:
            return None
        now = time.monotonic()
        free_pixels = self._max_pixels - sum(cost.pixels for cost in self._running)
        for one in sorted(self._waiting, key=lambda waiting: waiting.key(now)):
            as_large = sum(cost.size >= one.cost.size for cost in self._running)
            if one.cost.size and as_large >= max(1, self._num_places - one.cost.size):
                continue
            if one.cost.pixels <= free_pixels or not self._running:
                return one
            if now - one.since > _PATIENCE_SECONDS:
                return None
        return None
