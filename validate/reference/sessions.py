"""The PyTorch reference behind the engines' own interface: what the runtime would say with a perfect engine."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from engines.session import Engine, Probe, Values
from export.inputs import DecoderInputs, VisionInputs
from export.models.qwen2_vl.model import KvCache, Qwen2VL, load_reference
from validate.reference.probes import (
    Captured,
    add_caches,
    add_patch_rotations,
    add_token_rotations,
    capturing,
    probed_modules,
)


def open_reference(directory: Path, dtype: str, device: str, num_slots: int, capacity: int) -> Engine:
    """The reference as an engine that computes in `dtype`, weights included.

    Raises:
        UserError: no sound Qwen2-VL weights there.
    """
    model = load_reference(directory, getattr(torch, dtype), device)
    return Engine(ReferenceVision(model), ReferenceDecoder(model, num_slots, capacity))


class ReferenceVision:
    """The reference's vision encoder: a `VisionSession`."""

    def __init__(self, model: Qwen2VL) -> None:
        self._model = model

    def encode(self, inputs: VisionInputs) -> npt.NDArray[np.float32]:
        """See `VisionSession.encode`."""
        weight = self._model.lm_head.weight
        visual_embeds = self._model.encode(
            torch.from_numpy(inputs.patches).to(weight),
            *(torch.from_numpy(x).to(weight.device) for x in (inputs.positions, inputs.cu_seqlens)),
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


class ReferenceProbes:
    """The reference as an engine that shows what it computes on the way: a `ProbeSession`."""

    def __init__(self, directory: Path, dtype: str, device: str) -> None:
        self._directory = directory
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._device = device

    def vision(self, inputs: VisionInputs, probes: Sequence[Probe]) -> Values:
        """See `ProbeSession`."""
        model = self._load()
        with capturing(model, probed_modules({probe.reference for probe in probes})) as found:
            ReferenceVision(model).encode(inputs)
        add_patch_rotations(found, model, inputs.positions, self._dtype)
        return {probe.value: found[probe.reference] for probe in probes}

    def decoder(self, calls: Sequence[DecoderInputs], probes: Sequence[Probe]) -> Values:
        """See `ProbeSession`."""
        model = self._load()
        capacity = max(int(call.write_index[0]) + call.token_ids.shape[1] for call in calls)
        session = ReferenceDecoder(model, 1, capacity)
        modules = probed_modules({probe.reference for probe in probes})
        pieces = []
        for call in calls:
            with capturing(model, modules) as found:
                session.forward(0, call)
            piece: Captured = {name: x.reshape(call.token_ids.shape[1], -1) for name, x in found.items()}
            add_token_rotations(piece, model, call.position_ids[:, 0], self._dtype)
            pieces.append(piece)
        values: Values = {}
        add_caches(values, session.cache)
        return values | {
            probe.value: np.concatenate([piece[probe.reference] for piece in pieces]) for probe in probes
        }

    def _load(self) -> Qwen2VL:
        """For one look at a time: the high_precision must find its memory free in between."""
        return load_reference(self._directory, self._dtype, self._device)
