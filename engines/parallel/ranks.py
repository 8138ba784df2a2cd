"""A decoder that is divided among ranks, as one session: each rank a thread of this process."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from engines.parallel.communicator import Communicator, GroupError
from engines.parallel.threads import ThreadEnd, thread_group
from engines.session import DecoderSession
from export.bundle import Bundle
from export.errors import UserError
from export.inputs import DecoderInputs


class RanksInThreads:
    """All ranks of a group in one process: a `DecoderSession`.

    Every rank has its own part of the weights and of the cache; each computes all logits, which are the same bits.
    """

    def __init__(self, size: int, open_rank: Callable[[Communicator], DecoderSession]) -> None:
        """Args: size: of the group. open_rank: opens the decoder of one, to whom it gives the rank's communicator."""
        self._ends = thread_group(size)
        self._decoders = [open_rank(end) for end in self._ends]
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="rank")

    @property
    def num_slots(self) -> int:
        return self._decoders[0].num_slots

    @property
    def capacity(self) -> int:
        return self._decoders[0].capacity

    def forward(self, first_slot: int, inputs: DecoderInputs) -> npt.NDArray[np.float32]:
        """See `DecoderSession.forward`."""

        def of_rank(end: ThreadEnd) -> npt.NDArray[np.float32]:
            try:
                return self._decoders[end.rank].forward(first_slot, inputs)
            except BaseException:
                end.leave()
                raise

        calls = [self._pool.submit(of_rank, end) for end in self._ends]
        errors = [error for call in calls if (error := call.exception())]
        if errors:
            self._ends[0].rejoin()
            # The others' calls failed because of the first one that did.
            raise next((error for error in errors if not isinstance(error, GroupError)), errors[0])
        return calls[0].result()


def require_group(bundle: Bundle, end: Communicator) -> None:
    """Refuse a group of another size than the bundle's.

    Raises:
        UserError: it is.
    """
    if end.size != bundle.manifest.tensor_parallel:
        num_ranks = bundle.manifest.tensor_parallel
        raise UserError(
            f"{bundle.directory}: its decoder is divided among {num_ranks} ranks, this group has {end.size}.",
            f"Start {num_ranks} ranks.",
        )
