"""Several vision sessions as one: the segments of a call are dealt among them and run at the same time."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from engines.session import VisionSession
from export.inputs import VisionInputs


class DealtVision:
    """A `VisionSession` over several of the same encoder, each on a device of its own.

    Attention never crosses a segment, so who encodes it changes nothing but the order of a product's rows.
    """

    def __init__(self, sessions: Sequence[VisionSession]) -> None:
        """Args: sessions: at least one; each is called by one thread at a time."""
        self._sessions = sessions
        self._pool = ThreadPoolExecutor(len(sessions), thread_name_prefix="vision")

    def encode(self, inputs: VisionInputs) -> npt.NDArray[np.float32]:
        """See `VisionSession.encode`."""
        dealt = Dealt(inputs, len(self._sessions))
        if len(dealt.parts) == 1:
            return self._sessions[0].encode(inputs)
        calls = [
            self._pool.submit(session.encode, part)
            for session, part in zip(self._sessions, dealt.parts, strict=False)
        ]
        return dealt.gathered([call.result() for call in calls])

    def keep_compiled(self) -> None:
        """See `Engine.keep_compiled`."""
        for session in self._sessions:
            keep = getattr(session, "keep_compiled", None)
            if keep is not None:
                keep()


class Dealt:
    """A call of the vision graph in parts, at most one for each session."""

    def __init__(self, inputs: VisionInputs, num_hands: int) -> None:
        """Args: num_hands: sessions that can take a part; the first ones get one if there are too few segments."""
        self._offsets = inputs.cu_seqlens
        self._hands = [hand for hand in deal(np.diff(self._offsets).tolist(), num_hands) if hand]
        self.parts = [inputs] if len(self._hands) == 1 else [_segments(inputs, hand) for hand in self._hands]

    def gathered(self, answers: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """The embeddings of each part, in the order of `parts`, to those of the whole call."""
        if len(answers) == 1:
            return answers[0]
        offsets = self._offsets
        per_token = int(offsets[-1]) // sum(map(len, answers))
        embeds = np.empty((int(offsets[-1]) // per_token, answers[0].shape[1]), answers[0].dtype)
        for hand, answer in zip(self._hands, answers, strict=True):
            start = 0
            for segment in hand:
                rows = slice(offsets[segment] // per_token, offsets[segment + 1] // per_token)
                embeds[rows] = answer[start : start + rows.stop - rows.start]
                start += rows.stop - rows.start
        return embeds


def deal(lengths: Sequence[int], num_hands: int) -> list[list[int]]:
    """Which segments each session gets, in ascending order: the dearest first, to whoever has the least so far.

    A segment of n patches costs about n^2 + n: attention within it, and products over its rows.

    Args:
        lengths: patches of each segment.
        num_hands: sessions.
    """
    hands: list[list[int]] = [[] for _ in range(num_hands)]
    loads = [0] * num_hands
    for segment in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        least = loads.index(min(loads))
        hands[least].append(segment)
        loads[least] += lengths[segment] ** 2 + lengths[segment]
    return [sorted(hand) for hand in hands]


def _segments(inputs: VisionInputs, hand: Sequence[int]) -> VisionInputs:
    offsets = inputs.cu_seqlens
    rows = np.concatenate([np.arange(offsets[segment], offsets[segment + 1]) for segment in hand])
    lengths = [offsets[segment + 1] - offsets[segment] for segment in hand]
    own = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return VisionInputs.of(inputs.patches[rows], np.ascontiguousarray(inputs.positions[:, rows]), own)
