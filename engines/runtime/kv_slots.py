"""KV slots: which one a request gets, and how much of its prompt is already there.

A slot that was given back keeps its keys and values until the slot is needed. A prompt that begins as that
conversation did starts behind what both share: same tokens, same positions, same pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class CacheContent:
    """What the cache of a slot holds, or what a prompt would put there: everything that keys and values depend on."""

    token_ids: npt.NDArray[np.int64]  # [T]
    position_ids: npt.NDArray[np.int32]  # [3, T]
    pictures: tuple[tuple[int, bytes], ...]
    """(place of its first visual token, digest) of each picture that begins before T."""
    num_prompt_tokens: int
    """The rest was generated."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def first(self, num_tokens: int) -> "CacheContent":
        """The content of the first tokens alone."""
        return CacheContent(
            self.token_ids[:num_tokens],
            self.position_ids[:, :num_tokens],
            tuple(picture for picture in self.pictures if picture[0] < num_tokens),
            min(self.num_prompt_tokens, num_tokens),
        )

    def shared_tokens(self, other: "CacheContent") -> int:
        """How many tokens both begin with. Visual tokens are all alike: the pictures behind them must be equal too."""
        length = min(len(self), len(other))
        same = (self.token_ids[:length] == other.token_ids[:length]) & np.all(
            self.position_ids[:, :length] == other.position_ids[:, :length], axis=0
        )
        shared = length if same.all() else int(np.argmin(same))
        # The first picture that only one of them shows. A visual token that a model wrote itself shows none.
        for ours, theirs in zip_longest(self.pictures, other.pictures):
            if ours != theirs:
                return min([shared, *(picture[0] for picture in (ours, theirs) if picture)])
        return shared


EMPTY = CacheContent(np.zeros(0, np.int64), np.zeros((3, 0), np.int32), (), 0)


class KvSlots:
    """The free slots of a decoder session and what they still hold."""

    def __init__(self, num_slots: int) -> None:
        # Least recently used first.
        self._kept: dict[int, CacheContent] = dict.fromkeys(range(num_slots), EMPTY)

    def __len__(self) -> int:
        """Free slots."""
        return len(self._kept)

    def num_kept_tokens(self, slot: int) -> int:
        """How much of a free slot's cache must not be overwritten."""
        return len(self._kept[slot])

    def acquire(self, prompt: CacheContent, used_slots: Sequence[int]) -> tuple[int, int]:
        """Take a free slot: the one whose conversation `prompt` goes on with, or else one beside `used_slots`.

        One decoder call covers neighbouring slots, so slots in use stay close together; among equally close ones
        the least recently used goes. What that slot shares with the prompt is used either way.

        Returns:
            The slot, and how many tokens at the beginning of `prompt` its cache holds.
        """
        shared = {slot: prompt.shared_tokens(kept) for slot, kept in self._kept.items()}
        # A few common tokens, a system message say, do not make it the same conversation; half of a prompt does.
        continued = [
            slot for slot, kept in self._kept.items() if 0 < kept.num_prompt_tokens <= 2 * shared[slot]
        ]
        if continued:
            slot = max(continued, key=lambda slot: shared[slot])
        else:
            slot = min(self._kept, key=lambda slot: _range_with(slot, used_slots))
        del self._kept[slot]
        return slot, shared[slot]

    def release(self, slot: int, content: CacheContent) -> None:
        """Give a slot back with what its cache holds (`EMPTY` when that is in doubt)."""
        assert slot not in self._kept
        self._kept[slot] = content

    def forget(self) -> None:
        """Nothing is left in any free slot."""
        self._kept = dict.fromkeys(self._kept, EMPTY)


def _range_with(slot: int, used_slots: Sequence[int]) -> int:
    """How many neighbouring slots a call over the used ones and this one would cover."""
    return max([*used_slots, slot]) - min([*used_slots, slot]) + 1
