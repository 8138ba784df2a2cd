"""A group of ranks behind the sessions' interface, so that whoever asks does not know where it computes."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from engines.ranks.group import RankGroup
from engines.ranks.messages import Command, Encode, Forward, Start
from engines.session import Engine, require_slots
from export.inputs import DecoderInputs, VisionInputs


def open_ranks(start: Start, hostfile: Path | None = None) -> Engine:
    """Start a group. Args and errors as `RankGroup`."""
    group = RankGroup(start, hostfile)
    return Engine(RanksVision(group), RanksDecoder(group))


class RanksVision:
    """Every rank's vision encoder as one: a `VisionSession`."""

    def __init__(self, group: RankGroup) -> None:
        self._group = group

    def encode(self, inputs: VisionInputs) -> npt.NDArray[np.float32]:
        """See `VisionSession.encode`.

        Raises:
            EngineLostError: the ranks have ended.
        """
        return _only(self._group, Encode(inputs))


class RanksDecoder:
    """The decoder in the ranks: a `RecoverableDecoder`."""

    def __init__(self, group: RankGroup) -> None:
        self._group = group
        self.num_slots, self.capacity = group.opened.num_slots, group.opened.capacity

    def forward(self, first_slot: int, inputs: DecoderInputs) -> npt.NDArray[np.float32]:
        """See `DecoderSession.forward`.

        Raises:
            EngineLostError: the ranks have ended.
        """
        require_slots(self, first_slot, inputs)
        return _only(self._group, Forward([(first_slot, inputs)]))

    def recover(self) -> bool:
        """See `RecoverableDecoder.recover`."""
        return self._group.recover()

    def close(self) -> None:
        """End the ranks."""
        self._group.close()


def _only(group: RankGroup, command: Command) -> npt.NDArray[np.float32]:
    (answer,) = group.call(command)
    if isinstance(answer, Exception):
        raise answer
    return answer
