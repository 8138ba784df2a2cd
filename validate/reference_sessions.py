"""The PyTorch reference behind the engines' own interface: what would the runtime say with a perfect engine?"""

import numpy as np
import numpy.typing as npt
import torch

from engines.session import DecoderInputs
from export.reference.model import KvCache, Qwen2VL


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
        self._cache = model.new_cache(num_slots, capacity)

    def forward(self, first_slot: int, inputs: DecoderInputs) -> npt.NDArray[np.float32]:
        """See `DecoderSession.forward`."""
        weight = self._model.lm_head.weight
        slots = slice(first_slot, first_slot + len(inputs.token_ids))
        cache = KvCache(*([part[slots] for part in parts] for parts in self._cache))
        tensors = {name: torch.from_numpy(array).to(weight.device) for name, array in vars(inputs).items()}
        tensors["visual_embeds"] = tensors["visual_embeds"].to(weight.dtype)
        logits, present = self._model.decode(**tensors, cache=cache)
        for parts, updated in zip(self._cache, present, strict=True):
            for part, update in zip(parts, updated, strict=True):
                part[slots] = update
        result: npt.NDArray[np.float32] = logits.cpu().numpy()
        return result
