"""Rounding to 8-bit codes, and to the other code where a value lies between two: what references share."""

from typing import Literal

import torch
from torch import Tensor

LARGEST_CODE = {"int8": 127.0, "fp8": 448.0}
"""By precision; "fp8" is E4M3."""

SMALLEST_MAXIMUM = 1e-6
"""Of values under one scale: zeros have a scale too."""

_PAST_THE_TIE = 1.5  # a value a third of a step or more from its code is carried over the middle


def nearest_codes(normal: Tensor, precision: Literal["int8", "fp8"], *, turns_a_tie: bool = False) -> Tensor:
    """The codes nearest to values in units of their step, as floats of the same dtype.

    Args:
        normal: [..., K].
        precision: "int8" or "fp8".
        turns_a_tie: of each row, round the value that lies nearest between two codes to the other one: what any engine
            may do that computes in another order, and what few computations show.
    """
    codes = _codes(normal, precision)
    if not turns_a_tie:
        return codes
    # Beyond the value from its code lies the other neighbour; where the value is the code, none is nearer.
    other = _codes(normal + (normal - codes) * _PAST_THE_TIE, precision)
    lost = (normal - other).abs() - (normal - codes).abs()
    nearest = torch.where(other == codes, torch.inf, lost).argmin(-1, keepdim=True)
    return codes.scatter(-1, nearest, other.gather(-1, nearest))


def _codes(normal: Tensor, precision: Literal["int8", "fp8"]) -> Tensor:
    if precision == "fp8":
        largest = LARGEST_CODE[precision]
        return normal.clamp(-largest, largest).to(torch.float8_e4m3fn).to(normal.dtype)
    return normal.round().clamp(-128, 127)
