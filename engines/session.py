"""What must an engine offer so that the runtime and the validator can drive it?

One interface for every target, with NumPy at the border: the scheduler, the generation loop and the gates
never learn whether ONNX Runtime or TensorRT is below. Letters are the contract's: P patches, N segments, V
visual tokens, B batch, S query tokens, C hidden.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


class EngineError(RuntimeError):
    """An engine answered with something no sound engine answers: not-a-number logits, rows missing.

    A fault of the engine, of the export or of the checkpoint, never of the user's prompt: the command line
    exits with 3.
    """


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
    visual_embeds: npt.NDArray[np.float32]  # [V, C], the rows of this call's pictures only
    position_ids: npt.NDArray[np.int32]  # [3, B, S] temporal, height, width
    write_index: npt.NDArray[np.int64]  # [B]
    kv_lengths: npt.NDArray[np.int64]  # [B] valid cache length after this call
    logits_index: npt.NDArray[np.int64]  # [B, K'] query tokens to project onto the vocabulary


class VisionSession(Protocol):
    """The vision graph, ready to run."""

    def encode(
        self,
        patches: npt.NDArray[np.float32],
        positions: npt.NDArray[np.int32],
        cu_seqlens: npt.NDArray[np.int32],
    ) -> npt.NDArray[np.float32]:
        """Patches [P, patch_values], positions [2, P], cu_seqlens [N+1] to visual tokens [V, C] in CPU memory."""
        ...


class DecoderSession(Protocol):
    """The decoder graph with its KV cache: `num_slots` slots of `capacity` tokens each."""

    @property
    def num_slots(self) -> int: ...

    @property
    def capacity(self) -> int:
        """Tokens that fit into one slot."""
        ...

    def forward(self, first_slot: int, inputs: DecoderInputs) -> npt.NDArray[np.float32]:
        """Run row b of `inputs` on slot `first_slot + b`; returns logits [B, K', vocab] in CPU memory.

        The returned array may be reused by the next call: read or copy it before.
        """
        ...


def require_slots(decoder: DecoderSession, first_slot: int, inputs: DecoderInputs) -> None:
    """Refuse a call that reaches past a session's slots or past their end.

    Raises:
        ValueError: it does; the caller should have known.
    """
    batch, num_tokens = inputs.token_ids.shape
    if not 0 <= first_slot <= decoder.num_slots - batch:
        raise ValueError(f"slots {first_slot} to {first_slot + batch - 1} asked, of {decoder.num_slots}")
    end = int(inputs.write_index.max()) + num_tokens
    if end > decoder.capacity:
        raise ValueError(f"cache positions up to {end} asked, of {decoder.capacity}")
