"""The dtypes of weights, graphs and engines: one row each, with its bits and what every format calls it.

A name is NumPy's, ml_dtypes' and PyTorch's alike. No library is imported before an array or an enum is asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Dtype:
    """A row of `DTYPES`."""

    name: str
    bits: int
    """Of one value; values of fewer than 8 bits lie packed."""
    onnx: str
    """Its name in `onnx.TensorProto` and in `onnx_ir.DataType`."""
    safetensors: str | None = None
    """Its name in a safetensors header; None where we read and write none."""


DTYPES: Mapping[str, Dtype] = {
    dtype.name: dtype
    for dtype in (
        Dtype("float32", 32, "FLOAT", "F32"),
        Dtype("float16", 16, "FLOAT16", "F16"),
        Dtype("bfloat16", 16, "BFLOAT16", "BF16"),
        Dtype("float8_e4m3fn", 8, "FLOAT8E4M3FN", "F8_E4M3"),
        Dtype("int8", 8, "INT8", "I8"),
        Dtype("uint8", 8, "UINT8", "U8"),
        Dtype("int32", 32, "INT32", "I32"),
        Dtype("int64", 64, "INT64", "I64"),
        Dtype("float64", 64, "DOUBLE", "F64"),
        Dtype("bool", 8, "BOOL", "BOOL"),
        # Of no weight that is read; a header may name buffers of theirs.
        Dtype("float8_e5m2", 8, "FLOAT8E5M2", "F8_E5M2"),
        Dtype("int16", 16, "INT16", "I16"),
        Dtype("uint16", 16, "UINT16", "U16"),
        Dtype("uint32", 32, "UINT32", "U32"),
        Dtype("uint64", 64, "UINT64", "U64"),
        Dtype("int4", 4, "INT4"),
    )
}

GRAPH_DTYPES = ("float32", "float16", "bfloat16")
"""What a graph may compute in, and the weights of a checkpoint that is not quantized."""

FROM_SAFETENSORS: Mapping[str, str] = {
    dtype.safetensors: dtype.name for dtype in DTYPES.values() if dtype.safetensors
}
"""Our names by those of a safetensors header."""


def num_bytes(dtype: str, num_values: int) -> int:
    """What that many values take where they lie packed, in whole bytes."""
    return -(-num_values * DTYPES[dtype].bits // 8)


def numpy_dtype(dtype: str) -> "np.dtype[Any]":
    """The little-endian NumPy dtype; NumPy itself has no bfloat16, no float8 and no int4, which take a byte there."""
    import ml_dtypes  # noqa: PLC0415 - NumPy, which the contract needs not
    import numpy as np  # noqa: PLC0415

    own = getattr(ml_dtypes, DTYPES[dtype].name, None)
    return np.dtype(dtype).newbyteorder("<") if own is None else np.dtype(own)


def onnx_dtype(dtype: str) -> int:
    """The value of `TensorProto.DataType`."""
    from onnx import TensorProto  # noqa: PLC0415 - heavier than all who know a dtype's name alone

    return int(TensorProto.DataType.Value(DTYPES[dtype].onnx))
