"""What a value from outside may be: numbers, of which `true` is none although Python counts it as 1, and depth."""

import sys
from typing import Any, TypeGuard

MAX_LEVELS = 128
"""Of lists and objects in each other, from a stranger: whoever walks through them calls itself once a level or more."""


def is_whole(value: object) -> TypeGuard[int]:
    """A whole number, written as one: 1.0 is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """A number that a float can hold: a finite one, and no whole number of a thousand digits."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


def is_count(value: object) -> TypeGuard[int]:
    """A whole number that any reader can hold: from 0 to the largest of 64 bits."""
    return is_whole(value) and 0 <= value < 2**63


def is_too_deep(value: Any) -> bool:
    """Whether lists and objects stand in each other more than `MAX_LEVELS` deep."""
    level = [value]
    for _ in range(MAX_LEVELS + 1):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list | tuple)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True
