"""What our TensorRT plugins read from TensorRT's tensor descriptions."""

from collections.abc import Mapping
from typing import Any

TRITON_ELEMENTS: Mapping[str, str] = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}
"""`tensorrt.DataType` names and Triton's; names, since TensorRT 11 renumbered the values."""

ELEMENT_BYTES: Mapping[str, int] = {"fp32": 4, "fp16": 2, "bf16": 2}


def constant_dim(description: Any, axis: int, what: str) -> int:
    """A dimension that the kernel needs as a constant.

    Raises:
        ValueError: it is dynamic in the network.
    """
    size = int(description.shape[axis])
    if size < 0:
        raise ValueError(f"axis {axis} of {what} must be constant in the network, not dynamic")
    return size
