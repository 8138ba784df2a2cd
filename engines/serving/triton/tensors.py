"""Values out of the tensors of a request: one number or text, several, or none where the client does not say.

All of them raise `UserError` where a tensor holds something else.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from export.errors import UserError

Tensors = Mapping[str, npt.NDArray[Any]]
"""By name, as the server hands them over: TYPE_STRING as an object array of bytes."""


def number(tensors: Tensors, name: str) -> float | int | None:
    """The one value of an optional tensor."""
    values = tensors.get(name)
    if values is None or values.size == 0:
        return None
    if values.size != 1 or values.dtype.kind not in "if":
        raise UserError(f"{name} must hold one number, found {values.size} of type {values.dtype}.")
    value = values.reshape(-1)[0]
    # What the client wrote: 0.01 as float32 is a little less, which would be out of range.
    found: float | int = float(str(value)) if values.dtype == np.float32 else value.item()
    return found


def whole_number(tensors: Tensors, name: str) -> int | None:
    """The one value of an optional tensor, without a fraction."""
    found = number(tensors, name)
    if found is not None and not isinstance(found, int):
        raise UserError(f"{name} must be a whole number, found {found}.")
    return found


def flag(tensors: Tensors, name: str) -> bool | None:
    """True or false; None where the client does not say."""
    values = tensors.get(name)
    if values is None or values.size == 0:
        return None
    if values.size != 1 or values.dtype.kind != "b":
        raise UserError(f"{name} must hold true or false, found {values.size} of type {values.dtype}.")
    return bool(values.reshape(-1)[0])


def strings(tensors: Tensors, name: str) -> list[bytes]:
    """All values, none where the client does not say."""
    values = tensors.get(name)
    found = [] if values is None else values.reshape(-1).tolist()
    if not all(isinstance(value, bytes) for value in found):
        raise UserError(f"{name} must hold strings (TYPE_STRING, BYTES), found {values.dtype}.")  # type: ignore[union-attr]
    return found


def texts(tensors: Tensors, name: str) -> list[str]:
    """All values as text."""
    try:
        return [data.decode("utf-8") for data in strings(tensors, name)]
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8: {error}.") from None


def text(tensors: Tensors, name: str) -> str | None:
    """The one text of an optional tensor."""
    found = texts(tensors, name)
    if len(found) > 1:
        raise UserError(f"{name} must hold one text, found {len(found)}.")
    return found[0] if found else None


def whole_numbers(tensors: Tensors, name: str) -> list[int]:
    """All values, without a fraction."""
    values = tensors.get(name)
    if values is None or values.size == 0:
        return []
    if values.dtype.kind not in "iu":
        raise UserError(f"{name} must hold whole numbers, found {values.dtype}.")
    return [int(value) for value in values.reshape(-1).tolist()]
