"""What one call of each graph takes, and what one prompt becomes: arrays under the contract's names.

Letters are the contract's: P patches, N segments, M longest segment, V visual tokens, B batch, S query tokens,
C hidden, Q query tokens to project. NumPy alone: the runtime, the backends and the validator share these.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Grid = tuple[int, int, int]
"""Temporal steps, patch rows and patch columns of one image or video."""


def segment_range(cu_seqlens: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """0 .. M-1, M the longest segment: the input that carries M as a shape."""
    longest = int(np.diff(cu_seqlens).max(initial=0))
    return np.arange(longest, dtype=np.int32)


@dataclass(frozen=True, eq=False)
class VisionInputs:
    """One call of the vision graph: any number of images and videos, packed in one row of patches."""

    patches: npt.NDArray[np.float32]  # [P, patch_values]
    positions: npt.NDArray[np.int32]  # [2, P] row and column of each patch
    cu_seqlens: npt.NDArray[np.int32]  # [N + 1] patch offsets of the segments
    segment_range: npt.NDArray[np.int32]  # [M]

    @classmethod
    def of(
        cls,
        patches: npt.NDArray[np.float32],
        positions: npt.NDArray[np.int32],
        cu_seqlens: npt.NDArray[np.int32],
    ) -> "VisionInputs":
        """With the input that follows from the others."""
        return cls(patches, positions, cu_seqlens, segment_range(cu_seqlens))


class DeviceRows(Protocol):
    """Rows [V, C] of embeddings where an engine keeps them, used as an array is: sliced, copied, joined."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int:
        """What they take on the device."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> "Embeds":
        """Some rows in a run, in the same memory."""
        ...

    def copy(self) -> "DeviceRows":
        """In memory of their own."""
        ...

    def joined(self, parts: Sequence["Embeds"], /) -> "DeviceRows":
        """Rows of several parts one after another, on this one's device."""
        ...

    def to_host(self) -> npt.NDArray[np.float32]:
        """A copy in the host's memory."""
        ...


Embeds = npt.NDArray[np.float32] | DeviceRows
"""Visual embeddings [V, C], in the host's memory or where an engine keeps them."""


def join_rows(parts: Sequence[Embeds]) -> Embeds:
    """Rows of several parts one after another, on the device if any part is there."""
    if len(parts) == 1:
        return parts[0]
    on_device = next((part for part in parts if not isinstance(part, np.ndarray)), None)
    if on_device is not None:
        return on_device.joined(parts)
    return np.concatenate([part for part in parts if isinstance(part, np.ndarray)])


@dataclass(frozen=True, eq=False)
class DecoderInputs:
    """One call of the decoder graph, prefill (S = n) and decode (S = 1) alike, without the cache.

    A batch of unequal rows is padded on the right: row b has `kv_lengths[b] - write_index[b]` valid tokens.
    Token s of row b sits at cache position `write_index[b] + s` and attends to the positions up to its own.
    Padding is written past the row's end, so `write_index[b] + S` must stay within the slot's capacity for
    every row.

    Image and video pad ids in `token_ids`, row after row, take the rows of `visual_embeds` one by one. One that
    finds no row left is embedded as the plain token it is: a model may write such an id itself, in decode.
    """

    token_ids: npt.NDArray[np.int64]  # [B, S]
    # [V, C], the rows of this call's images only. A session that gives `DeviceRows` takes them here too.
    visual_embeds: npt.NDArray[np.float32]
    position_ids: npt.NDArray[np.int32]  # [3, B, S] temporal, height, width
    write_index: npt.NDArray[np.int64]  # [B]
    kv_lengths: npt.NDArray[np.int64]  # [B] valid cache length after this call
    logits_index: npt.NDArray[np.int64]  # [B, Q] query tokens to project onto the vocabulary


@dataclass(frozen=True)
class SeenMedium:
    """What became of one picture or video on the way."""

    kind: str
    """`image` or `video`."""
    seconds: tuple[float, ...] = ()
    """When each frame of a video that is seen stands, from its first frame; empty where there is no clock."""
    notes: tuple[str, ...] = ()
    """What was lost, a sentence each."""
    size: tuple[int, int] | None = None
    """Width and height of a picture as it was sent, upright; None of a video."""

    def to_json_object(self) -> dict[str, Any]:
        """What is known of it."""
        known = asdict(self)
        return known if self.size is not None else {name: known[name] for name in known if name != "size"}


@dataclass(frozen=True)
class ModelInputs:
    """One prompt, ready for both graphs."""

    token_ids: npt.NDArray[np.int64]
    """[S]"""
    position_ids: npt.NDArray[np.int32]
    """[3, S]: temporal, height and width."""
    position_delta: int
    """A generated token's position id is its place in the cache plus this, on all three axes."""
    patches: npt.NDArray[np.float32]
    """[P, patch_values], images and videos one after another in order of appearance."""
    positions: npt.NDArray[np.int32]
    """[2, P]: row and column of each patch."""
    cu_seqlens: npt.NDArray[np.int32]
    """[N + 1]: patch offsets of the segments."""
    grids: tuple[Grid, ...]
    """Of each image and video."""
    media: tuple[SeenMedium, ...] = ()
    """Of each image and video, too."""

    @cached_property
    def vision(self) -> VisionInputs:
        """The call of the vision graph that encodes this prompt's images and videos."""
        return VisionInputs.of(self.patches, self.positions, self.cu_seqlens)
