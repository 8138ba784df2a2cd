"""What a server looks like to N clients that ask at the same time.

A closed loop: each client, a thread of its own, sends its next question as soon as the last one is answered. Nothing
here knows how an answer is made: `ask` may call a scheduler in this process or a server over the network.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class TimedReply:
    """What one client saw of one answer."""

    first_token_seconds: float
    """From sending the question."""
    seconds: float
    num_tokens: int


@dataclass(frozen=True)
class LoadResult:
    """What all clients saw."""

    num_clients: int
    seconds: float
    replies: list[TimedReply]

    @property
    def tokens_per_second(self) -> float:
        return sum(reply.num_tokens for reply in self.replies) / self.seconds

    def first_token_seconds(self, quantile: float) -> float:
        """A quantile by nearest rank, from 0 to 1, of the time to the first token."""
        ordered = sorted(reply.first_token_seconds for reply in self.replies)
        return ordered[min(int(quantile * len(ordered)), len(ordered) - 1)]


def run_load(
    ask: Callable[[int], TimedReply], num_clients: int, num_questions: int, first: int = 0
) -> LoadResult:
    """Ask the questions `first`, `first` + 1, ... by `num_clients` clients at once.

    Raises:
        Exception: what `ask` raised first; the other clients stop after their current question.
    """
    numbers = iter(range(first, first + num_questions))
    replies: list[TimedReply] = []
    errors: list[Exception] = []
    lock = threading.Lock()

    def client() -> None:
        while not errors:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                replies.append(ask(number))
            except Exception as error:  # noqa: BLE001  raised by the caller below, whatever it is
                errors.append(error)

    threads = [threading.Thread(target=client) for _ in range(num_clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return LoadResult(num_clients, time.perf_counter() - start, replies)
