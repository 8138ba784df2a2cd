"""The thread that calls `step` as long as there is work."""

import logging
import threading
from types import TracebackType
from typing import Self

from engines.runtime.answer import Request
from engines.runtime.heap import give_memory_back
from engines.runtime.scheduler import Scheduler
from engines.runtime.scheduler_limits import SchedulerStats
from engines.runtime.sequence import Listener, Ticket

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 1.0
"""Without work, after which freed memory goes back to the system: in between it would only be asked for again."""


class SchedulerService:
    """A scheduler with the thread that steps it: started by `start` or `with`, ended by `close`.

    Listeners are called by that thread, so one that blocks holds up every answer.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._changed = threading.Condition()  # work came, or the end; and back: all work is done
        self._is_closing = False
        # A daemon, so that a process whose main thread ends without `close` does not hang.
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def submit(
        self, request: Request, on_event: Listener, *, deadline_seconds: float | None = None
    ) -> Ticket:
        """See `Scheduler.submit`."""
        ticket = self.scheduler.submit(request, on_event, deadline_seconds=deadline_seconds)
        self._wake()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """See `Scheduler.cancel`."""
        self.scheduler.cancel(ticket)

    def stats(self) -> SchedulerStats:
        """See `Scheduler.stats`."""
        return self.scheduler.stats()

    def drain(self, timeout_seconds: float | None = None) -> bool:
        """Take nothing new and wait until what was taken is answered; False when the time is up before."""
        self.scheduler.drain()
        with self._changed:
            return self._changed.wait_for(lambda: not self.scheduler.has_work, timeout_seconds)

    def close(self) -> None:
        """Cancel what is left and end the thread, after the step it is in. Call `drain` first to let answers end."""
        self.scheduler.drain()
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                has_more = self.scheduler.step()
            except BaseException as error:
                # The scheduler hands an engine's faults to the requests they hit: this is a fault of its own, or a
                # native library's panic. Without this thread nobody would ever be answered.
                logger.exception("a scheduling step failed; all requests in it end")
                self.scheduler.end_all(error)
                has_more = False
            if not has_more:
                self._wake()
        self.scheduler.end_all()
        self._wake()

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False when it is time to end."""
        with self._changed:
            if not self._changed.wait_for(self._is_due, _IDLE_SECONDS):
                give_memory_back()
                self._changed.wait_for(self._is_due)
            return not self._is_closing

    def _is_due(self) -> bool:
        return self._is_closing or self.scheduler.has_work
