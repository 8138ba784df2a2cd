"""A group whose ranks are processes under MPI: what sums and gathers of a rank's graph go through on CPUs."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engines.parallel.communicator import GroupError

if TYPE_CHECKING:
    from mpi4py import MPI


class MpiCommunicator:
    """A `Communicator` of one process."""

    def __init__(self, group: "MPI.Comm") -> None:
        """Args: group: of the ranks that one decoder, or one stage of it, is divided among, in their order."""
        self._group = group

    @property
    def rank(self) -> int:
        return int(self._group.Get_rank())

    @property
    def size(self) -> int:
        return int(self._group.Get_size())

    def all_reduce(self, values: npt.NDArray[Any]) -> None:
        """See `Communicator`. Summed here in the order of ranks: the same bits on each, and as threads have them."""
        values[...] = self.all_gather(values).sum(axis=0)

    def all_gather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """See `Communicator`."""
        from mpi4py import MPI  # noqa: PLC0415 - of an extra

        given = np.ascontiguousarray(values)
        gathered = np.empty((self.size, *given.shape), given.dtype)
        try:
            self._group.Allgather(given, gathered)
        except MPI.Exception as error:
            raise GroupError(f"a rank of the group is gone: {error}") from error
        return gathered
