"""Visual embeddings that stay on the device: what the runtime caches, slices and joins without bringing them over."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from engines.backends.onnxruntime_cuda.device import Device, Memory, Mover, allocated
from export.inputs import DeviceRows, Embeds

_WHAT = "visual_embeds"


class EmbeddingRows:
    """Rows [V, C] in an engine's dtype on its device: `DeviceRows`."""

    def __init__(self, device: Device, mover: Mover, memory: Memory) -> None:
        self._device, self._mover, self.memory = device, mover, memory

    @classmethod
    def of_host(
        cls, device: Device, mover: Mover, array: npt.NDArray[np.float32], element_type: int
    ) -> "EmbeddingRows":
        """Rows that were on the host: a spilled image's, or those of another engine. Cast on the device."""
        uploaded = allocated(device, array.shape, TensorProto.FLOAT)
        device.upload(_WHAT, array, uploaded.value)
        return cls(device, mover, mover.joined([uploaded], element_type))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.memory.shape

    @property
    def nbytes(self) -> int:
        return self.memory.shape[0] * self.memory.row_bytes

    def __len__(self) -> int:
        return self.memory.shape[0]

    def __getitem__(self, rows: slice) -> Embeds:
        """Some rows in a run: the same memory."""
        start, stop, step = rows.indices(len(self))
        assert step == 1
        if stop <= start:
            return np.zeros((0, *self.shape[1:]), np.float32)
        return EmbeddingRows(self._device, self._mover, self.memory.rows(start, stop))

    def copy(self) -> DeviceRows:
        """In memory of their own, so that the rest of a call's embeddings can go."""
        return self.joined([self])

    def joined(self, parts: Sequence[Embeds]) -> DeviceRows:
        """Rows one after another. Parts on the host are brought over."""
        element_type = self.memory.element_type
        here = [
            part
            if isinstance(part, EmbeddingRows)
            else EmbeddingRows.of_host(self._device, self._mover, _host(part), element_type)
            for part in parts
            if len(part)
        ]
        memory = self._mover.joined([part.memory for part in here], element_type)
        return EmbeddingRows(self._device, self._mover, memory)

    def to_host(self) -> npt.NDArray[np.float32]:
        """A copy in float32, exact: the engine's dtypes are parts of it."""
        return self._mover.to_host(_WHAT, self.memory)


def _host(rows: Embeds) -> npt.NDArray[np.float32]:
    return rows if isinstance(rows, np.ndarray) else rows.to_host()
