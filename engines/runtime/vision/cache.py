"""Cache of encoded pictures, by their content."""

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

Embeds = npt.NDArray[np.float32]


class EmbeddingCache:
    """Visual embeddings [V, C] by picture digest; the least recently used go when `max_bytes` are exceeded."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
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
        if digest in self._embeds or embeds.nbytes > self.max_bytes:
            return
        self._embeds[digest] = embeds
        self.num_bytes += embeds.nbytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self._embeds.popitem(last=False)
            self.num_bytes -= oldest.nbytes
