"""The values of a stored tensor, and of a graph's weight that points at one, as a NumPy array."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from export.dtypes import numpy_dtype
from export.weights.safetensors_file import StoredTensor
from export.weights.slices import columns_of

if TYPE_CHECKING:
    import onnx


def read_values(stored: StoredTensor) -> npt.NDArray[Any]:
    """Read a whole tensor, in its own dtype and shape.

    Raises:
        OSError: the file cannot be read.
    """
    with stored.path.open("rb") as file:
        file.seek(stored.offset_bytes)
        content = file.read(stored.length_bytes)
    return np.frombuffer(content, numpy_dtype(stored.dtype)).reshape(stored.shape)


def mapped_values(tensor: "onnx.TensorProto", directory: Path, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The values of an initializer in a file, read only: mapped where they lie together, columns as a view of that.

    Args:
        tensor: of a checked graph.
        directory: the graph's.
        dtype: of the same size as the tensor's values, which must be of whole bytes.
    """
    place = {entry.key: entry.value for entry in tensor.external_data}
    columns = columns_of(tensor)
    shape = tuple(tensor.dims) if columns is None else (columns.rows, columns.columns)
    path, offset = directory / place["location"], int(place["offset"])
    values = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
    return values if columns is None else values[:, columns.start : columns.stop]
