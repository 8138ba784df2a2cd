"""Compares the values of two stored tensors in blocks, so that a table of gigabytes costs a few megabytes."""

from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from export.dtypes import numpy_dtype
from export.weights.safetensors_file import StoredTensor

BLOCK_VALUES = 1 << 21


def have_equal_values(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether shapes and all values are equal, as numbers: across dtypes, and -0.0 equals 0.0. NaN equals nothing.

    Stops at the first block that differs.

    Raises:
        OSError: a file cannot be read.
    """
    if first.shape != second.shape:
        return False
    num_values = first.length_bytes // numpy_dtype(first.dtype).itemsize
    with first.path.open("rb") as first_file, second.path.open("rb") as second_file:
        for start in range(0, num_values, BLOCK_VALUES):
            count = min(BLOCK_VALUES, num_values - start)
            x, y = _block(first_file, first, start, count), _block(second_file, second, start, count)
            if not np.array_equal(x.astype(np.float32), y.astype(np.float32)):
                return False
    return True


def _block(file: BinaryIO, tensor: StoredTensor, start: int, count: int) -> npt.NDArray[np.generic]:
    dtype = numpy_dtype(tensor.dtype)
    file.seek(tensor.offset_bytes + start * dtype.itemsize)
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)
