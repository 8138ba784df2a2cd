"""How events of the scheduler's thread reach the event loop: one wake-up for all answers of a step."""

import asyncio
from collections import deque

from engines.runtime.answer import Event
from engines.runtime.sequence import Listener


class Mailbox:
    """Delivers events to queues of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._letters: deque[tuple[asyncio.Queue[tuple[int, Event]], int, Event]] = deque()
        self._is_called = False

    def listener(self, queue: asyncio.Queue[tuple[int, Event]], index: int) -> Listener:
        """What puts (index, event) into the queue, from any thread."""

        def on_event(event: Event) -> None:
            self._letters.append((queue, index, event))
            # Set back before the letters are read: one that comes meanwhile is read, or calls again.
            if not self._is_called:
                self._is_called = True
                self._loop.call_soon_threadsafe(self._deliver)

        return on_event

    def _deliver(self) -> None:
        self._is_called = False
        while self._letters:
            queue, index, event = self._letters.popleft()
            queue.put_nowait((index, event))
