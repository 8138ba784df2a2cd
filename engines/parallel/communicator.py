"""What the ranks of a group say to each other within a call: sums and gathers of arrays.

Every rank of a group makes the same calls in the same order, each with an array of the same shape and dtype; a call
returns on none before all have made it. That is MPI's and NCCL's rule, too.
"""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class GroupError(RuntimeError):
    """Another rank of the group has ended, or left the call: nothing that this rank computes has a meaning any more."""


class Communicator(Protocol):
    """One rank's end of a group."""

    @property
    def rank(self) -> int:
        """0 to `size` - 1."""
        ...

    @property
    def size(self) -> int:
        """How many ranks the group has."""
        ...

    def all_reduce(self, values: npt.NDArray[Any]) -> None:
        """Put the sum over all ranks in the place of `values`, the same bits on each.

        Args:
            values: C-contiguous, float32 or float64, and writable.

        Raises:
            GroupError: another rank is gone.
        """
        ...

    def all_gather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The arrays of all ranks by rank: [size, *values.shape], the dtype of `values`.

        Raises:
            GroupError: another rank is gone.
        """
        ...


class Alone:
    """A group of one: nothing to say."""

    rank = 0
    size = 1

    def all_reduce(self, values: npt.NDArray[Any]) -> None:
        del values

    def all_gather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(values)[None]
