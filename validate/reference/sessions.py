"""The PyTorch reference behind the engines' own interface: what would the runtime say with a perfect engine?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engines.session import DecoderInputs
from export.reference.model import KvCache, Qwen2VL, load_reference
from validate.bisect.probes import Tap, Values
from validate.reference.probes import (
    Taps,
    add_caches,
    add_patch_rotations,
    add_token_rotations,
    tapped_modules,
    tapping,
)


def open_reference(
    directory: Path, dtype: str, device: str, num_slots: int, capacity: int
) -> tuple["ReferenceVision", "ReferenceDecoder"]:
    """The reference as an engine that computes in `dtype`, weights included.

    Raises:
        UserError: no sound Qwen2-VL weights there.
    """
    model = load_reference(directory, getattr(torch, dtype), device)
    return ReferenceVision(model), ReferenceDecoder(model, num_slots, capacity)


class ReferenceVision:
    """The reference's vision encoder: a `VisionSession`."""

    def __init__(self, model: Qwen2VL) -> None:
        self._model = model

    def encode(
        self,
        patches: npt.NDArray[np.float32],
        positions: npt.NDArray[np.int32],
        cu_seqlens: npt.NDArray[np.int32],
    ) -> npt.NDArray[np.float32]:
        """See `VisionSession.encode`."""
        weight = self._model.lm_head.weight
        visual_embeds = self._model.encode(
            torch.from_numpy(patches).to(weight),
            *(torch.from_numpy(x).to(weight.device) for x in (positions, cu_seqlens)),
        )
        result: npt.NDArray[np.float32] = visual_embeds.float().cpu().numpy()
        return result


class ReferenceDecoder:
    """The reference's decoder with KV slots: a `DecoderSession`. Its dtype is the model's."""

    def __init__(self, model: Qwen2VL, num_slots: int, capacity: int) -> None:
        self.num_slots = num_slots
        self.capacity = capacity
        self._model = model
        self.cache = model.new_cache(num_slots, capacity)

    def forward(self, first_slot: int, inputs: DecoderInputs) -> npt.NDArray[np.float32]:
        """See `DecoderSession.forward`."""
        weight = self._model.lm_head.weight
        slots = slice(first_slot, first_slot + len(inputs.token_ids))
        cache = KvCache(*([part[slots] for part in parts] for parts in self.cache))
        tensors = {name: torch.from_numpy(array).to(weight.device) for name, array in vars(inputs).items()}
        tensors["visual_embeds"] = tensors["visual_embeds"].to(weight.dtype)
        logits, present = self._model.decode(**tensors, cache=cache)
        for parts, updated in zip(self.cache, present, strict=True):
            for part, update in zip(parts, updated, strict=True):
                part[slots] = update
        result: npt.NDArray[np.float32] = logits.cpu().numpy()
        return result


class ReferenceTaps:
    """The reference as an engine that shows what it computes on the way: a `TapSession`."""

    def __init__(self, directory: Path, dtype: str, device: str) -> None:
        self._directory = directory
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._device = device

    def vision(self, feeds: Sequence[npt.NDArray[Any]], taps: Sequence[Tap]) -> Values:
        """See `TapSession`."""
        model = self._load()
        patches, positions, cu_seqlens = feeds
        with tapping(model, tapped_modules({tap.reference for tap in taps})) as found:
            ReferenceVision(model).encode(patches, positions, cu_seqlens)
        add_patch_rotations(found, model, positions, self._dtype)
        return {tap.value: found[tap.reference] for tap in taps}

    def decoder(self, calls: Sequence[DecoderInputs], taps: Sequence[Tap]) -> Values:
        """See `TapSession`."""
        model = self._load()
        capacity = max(int(call.write_index[0]) + call.token_ids.shape[1] for call in calls)
        session = ReferenceDecoder(model, 1, capacity)
        modules = tapped_modules({tap.reference for tap in taps})
        pieces = []
        for call in calls:
            with tapping(model, modules) as found:
                session.forward(0, call)
            piece: Taps = {name: x.reshape(call.token_ids.shape[1], -1) for name, x in found.items()}
            add_token_rotations(piece, model, call.position_ids[:, 0], self._dtype)
            pieces.append(piece)
        values: Values = {}
        add_caches(values, session.cache)
        return values | {
            tap.value: np.concatenate([piece[tap.reference] for piece in pieces]) for tap in taps
        }

    def _load(self) -> Qwen2VL:
        """For one look at a time: the oracle must find its memory free in between."""
        return load_reference(self._directory, self._dtype, self._device)
