"""The values of a stored tensor as a NumPy array."""

from typing import Any

import numpy as np
import numpy.typing as npt

from export.dtypes import numpy_dtype
from export.weights.safetensors_file import StoredTensor


def read_values(stored: StoredTensor) -> npt.NDArray[Any]:
    """Read a whole tensor, in its own dtype and shape.

    Raises:
        OSError: the file cannot be read.
    """
    with stored.path.open("rb") as file:
        file.seek(stored.offset_bytes)
        content = file.read(stored.length_bytes)
    return np.frombuffer(content, numpy_dtype(stored.dtype)).reshape(stored.shape)
