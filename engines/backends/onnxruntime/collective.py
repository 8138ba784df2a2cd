"""Sums and gathers over ranks in ONNX Runtime, which has none: a custom op in Python asks the rank's communicator."""

from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from engines.parallel.communicator import Communicator, GroupError
from export.install import require_extra
from plugins.collective.onnx_functions import CUSTOM_OP

_numbers = count(1)
_communicators: WeakValueDictionary[int, Communicator] = WeakValueDictionary()
_errors: dict[int, Exception] = {}
"""What a communicator raised in the call that is under way, by its number."""


def number_of(communicator: Communicator) -> int:
    """What a graph calls a communicator of this process. Whoever opened the graph keeps the communicator alive."""
    number = next(_numbers)
    _communicators[number] = communicator
    return number


def allow_collectives(options: ort.SessionOptions) -> None:
    """Let a session run a rank's graph.

    Raises:
        UserError: onnxruntime-extensions is not installed.
    """
    require_extra("parallel", "A decoder that is divided among ranks")
    from onnxruntime_extensions import get_library_path  # noqa: PLC0415 - of an extra

    _register()
    options.register_custom_ops_library(get_library_path())


def raise_error(number: int) -> None:
    """After a call: the error that one of its sums or gathers had, by the number of the communicator."""
    if error := _errors.pop(number, None):
        raise error


_registered: list[object] = []


def _register() -> None:
    """Once a process: onnxruntime-extensions keeps every function that it is given."""
    if _registered:
        return
    from onnxruntime_extensions import PyCustomOpDef, onnx_op  # noqa: PLC0415 - of an extra

    attributes = {"operation": PyCustomOpDef.dt_string, "communicator": PyCustomOpDef.dt_int64}
    floats = [PyCustomOpDef.dt_float]
    _registered.append(onnx_op(op_type=CUSTOM_OP, inputs=floats, outputs=floats, attrs=attributes)(_run))


def _run(x: npt.NDArray[np.float32], *, operation: Any, communicator: int) -> npt.NDArray[np.float32]:
    """Never raises: an exception in here would end the process. What follows an error computes with no numbers."""
    number = int(communicator)
    is_sum = operation in {"all_reduce", b"all_reduce"}
    ends = _communicators.get(number)
    try:
        if number not in _errors and ends is not None:
            return _summed(ends, x) if is_sum else _gathered(ends, x)
        _errors.setdefault(number, GroupError("a rank's graph was run without its group"))
    except Exception as error:  # noqa: BLE001 - see above; `raise_error` raises it
        _errors[number] = error
    size = 1 if is_sum or ends is None else ends.size
    return np.full((size * len(x), *x.shape[1:]), np.nan, np.float32)


def _summed(ends: Communicator, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    summed = np.array(x, order="C")
    ends.all_reduce(summed)
    return summed


def _gathered(ends: Communicator, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    gathered: npt.NDArray[np.float32] = ends.all_gather(np.ascontiguousarray(x))
    return gathered.reshape(-1, *x.shape[1:])
