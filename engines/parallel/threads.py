"""A group whose ranks are threads of one process: for a bundle in ranks on one machine, and for tests.

What a rank computes between two collectives runs at once with the others' where it lets go of the interpreter's lock,
as ONNX Runtime does.
"""

from threading import Barrier, BrokenBarrierError
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.parallel.communicator import GroupError


def thread_group(size: int) -> tuple["ThreadEnd", ...]:
    """The ends of a new group, one for each of `size` threads."""
    group = _Group(size)
    return tuple(ThreadEnd(group, rank) for rank in range(size))


class _Group:
    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = Barrier(size)
        self.given: list[npt.NDArray[Any] | None] = [None] * size


class ThreadEnd:
    """A `Communicator` of one thread."""

    def __init__(self, group: _Group, rank: int) -> None:
        self._group = group
        self._rank = rank

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._group.size

    def all_reduce(self, values: npt.NDArray[Any]) -> None:
        # Every rank adds in the same order, so that all have the same bits.
        values[...] = self.all_gather(values).sum(axis=0)

    def all_gather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        group = self._group
        group.given[self._rank] = values
        self._wait()
        gathered = np.stack([given for given in group.given if given is not None])
        # Nobody may write to what another still reads.
        self._wait()
        return gathered

    def leave(self) -> None:
        """Let the others' calls fail instead of waiting for this rank for ever."""
        self._group.barrier.abort()

    def rejoin(self) -> None:
        """Make a group that a rank has left usable again; no rank may be in a call."""
        self._group.barrier.reset()

    def _wait(self) -> None:
        try:
            self._group.barrier.wait()
        except BrokenBarrierError:
            raise GroupError(f"another of the {self.size} ranks ended its call with an error") from None
