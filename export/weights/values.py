"""The values of a stored tensor as a NumPy array."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from export.weights.safetensors_file import StoredTensor

_FROM_ML_DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float8_e4m3fn": ml_dtypes.float8_e4m3fn}


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The little-endian NumPy dtype of a stored tensor's."""
    return np.dtype(_FROM_ML_DTYPES[dtype]) if dtype in _FROM_ML_DTYPES else np.dtype(dtype).newbyteorder("<")


def read_values(stored: StoredTensor) -> npt.NDArray[Any]:
    """Read a whole tensor, in its own dtype and shape.

    Raises:
        OSError: the file cannot be read.
    """
    with stored.path.open("rb") as file:
        file.seek(stored.offset_bytes)
        content = file.read(stored.length_bytes)
    return np.frombuffer(content, numpy_dtype(stored.dtype)).reshape(stored.shape)
