"""What a number from outside may be; `true` is none, although Python counts it as 1."""

import sys
from typing import TypeGuard


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
