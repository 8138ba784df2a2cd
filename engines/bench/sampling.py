"""Calls something again and again for a stated time, and says how long the calls took: median and quartiles."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MOST_SAMPLES = 1000


@dataclass(frozen=True)
class Effort:
    """How long one figure may be measured.

    A row has at least `least` samples, and calls of more than `longest_call_seconds` are not made a second time.
    """

    seconds: float = 1.0
    least: int = 3
    longest_call_seconds: float = 10.0


@dataclass(frozen=True)
class Spread:
    """A median with the quartiles around it."""

    median: float
    low: float
    high: float
    num_samples: int


def sampled_seconds(call: Callable[[], object], effort: Effort) -> Spread:
    """Wall seconds of a call: once to warm up, then as often as the time allows, three times at least."""
    call()
    seconds: list[float] = []
    until = time.perf_counter() + effort.seconds
    while len(seconds) < effort.least or (time.perf_counter() < until and len(seconds) < MOST_SAMPLES):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return spread_of(seconds)


def spread_of(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least one value, by linear interpolation between ranks."""
    ordered = sorted(values)
    return Spread(
        quantile(ordered, 0.5), quantile(ordered, 0.25), quantile(ordered, 0.75), num_samples=len(ordered)
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of ascending values."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
