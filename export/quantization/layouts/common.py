"""What layouts share: what a tensor of a layer must be, and the order of inputs whose groups are scattered."""

from dataclasses import dataclass

import numpy as np

from export.errors import UserError
from export.quantization.linear import Array

FLOATS = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Part:
    """One tensor of a quantized layer: the dtypes and shapes that it may have."""

    dtypes: tuple[str, ...]
    shape: tuple[int, ...]
    is_optional: bool = False
    other_shapes: tuple[tuple[int, ...], ...] = ()

    def problem(self, dtype: str, shape: tuple[int, ...]) -> str | None:
        """What does not fit; None if all does."""
        if dtype in self.dtypes and shape in {self.shape, *self.other_shapes}:
            return None
        return f"{dtype} {list(shape)}, expected {' or '.join(self.dtypes)} {list(self.shape)}"


def order_of(groups: Array | None, num_inputs: int, num_groups: int) -> Array | None:
    """Inputs sorted by their group, int32 [K]; None where they stand so.

    Args:
        groups: the group of each input [K]; None, or -1 in it: as they stand.

    Raises:
        UserError: groups of different sizes.
    """
    size = num_inputs // num_groups
    if groups is None or np.array_equal(groups, np.arange(num_inputs) // size) or (groups == -1).any():
        return None
    if groups.min() < 0 or not np.array_equal(np.bincount(groups, minlength=num_groups), [size] * num_groups):
        raise UserError(f"the group of each input must give each of {num_groups} groups {size} inputs.")
    return np.argsort(groups, kind="stable").astype(np.int32)
