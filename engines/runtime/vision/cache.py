"""Cache of encoded pictures, by their content."""

from collections import OrderedDict

import numpy as np

from export.inputs import Embeds


class EmbeddingCache:
    """Visual embeddings [V, C] by picture digest; the least recently used go when the bounds are exceeded.

    Those that an engine keeps on its device go to the host first, and from there away.

    Args:
        max_bytes: in the host's memory.
        max_device_bytes: on the engine's device.
    """

    def __init__(self, max_bytes: int, max_device_bytes: int = 0) -> None:
        self.max_bytes, self.max_device_bytes = max_bytes, max_device_bytes
        self.num_bytes = self.num_device_bytes = 0
        self._embeds: OrderedDict[bytes, Embeds] = OrderedDict()

    def __len__(self) -> int:
        return len(self._embeds)

    def get(self, digest: bytes) -> Embeds | None:
        """A picture's embeddings, if they are still here."""
        embeds = self._embeds.get(digest)
        if embeds is not None:
            self._embeds.move_to_end(digest)
        return embeds

    def put(self, digest: bytes, embeds: Embeds) -> None:
        """Keep a picture's embeddings; ones larger than the whole budget are not kept."""
        if digest in self._embeds:
            return
        if not isinstance(embeds, np.ndarray):
            if embeds.nbytes <= self.max_device_bytes:
                self._embeds[digest] = embeds
                self.num_device_bytes += embeds.nbytes
                self._spill()
                return
            if not self.max_bytes:
                return
            embeds = embeds.to_host()
        if embeds.nbytes > self.max_bytes:
            return
        self._embeds[digest] = embeds
        self.num_bytes += embeds.nbytes
        self._drop()

    def _spill(self) -> None:
        """Bring the least recently used from the device to the host until the rest fits there."""
        for digest in list(self._embeds):
            if self.num_device_bytes <= self.max_device_bytes:
                return
            embeds = self._embeds[digest]
            if isinstance(embeds, np.ndarray):
                continue
            self.num_device_bytes -= embeds.nbytes
            if not self.max_bytes:
                del self._embeds[digest]
                continue
            self._embeds[digest] = host = embeds.to_host()  # in its old place
            self.num_bytes += host.nbytes
            self._drop()

    def _drop(self) -> None:
        for digest in list(self._embeds):
            if self.num_bytes <= self.max_bytes:
                return
            embeds = self._embeds[digest]
            if isinstance(embeds, np.ndarray):
                del self._embeds[digest]
                self.num_bytes -= embeds.nbytes
