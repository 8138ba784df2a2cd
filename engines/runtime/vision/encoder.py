"""Encodes pictures, several together in one call, and takes known ones from the cache."""

from collections.abc import Sequence

from engines.runtime.lost import EngineLostError
from engines.runtime.scheduler_limits import SchedulerLimits, SchedulerStats
from engines.runtime.sequence import TokenSequence, timed
from engines.runtime.vision.cache import EmbeddingCache
from engines.runtime.vision.images import PromptImage, encode_images
from engines.session import VisionSession
from export.checkpoint.config import ModelConfig
from export.inputs import Embeds


class ImageEncoder:
    """One vision session for the pictures of all requests; each picture is encoded once while it is remembered."""

    def __init__(
        self, vision: VisionSession, model: ModelConfig, limits: SchedulerLimits, stats: SchedulerStats
    ) -> None:
        self._vision, self._model, self._stats = vision, model, stats
        self._max_patches = limits.max_vision_patches_per_call
        self.cache = EmbeddingCache(limits.embedding_cache_bytes, limits.device_embedding_cache_bytes)

    def encode_next(self, sequences: Sequence[TokenSequence]) -> list[tuple[TokenSequence, Exception]]:
        """Give sequences the embeddings of their missing pictures, as far as one call goes, the first sequences first.

        Returns:
            The sequences with a picture on which the engine fails even alone.
        """
        for sequence in sequences:
            self._find_known(sequence)
        pictures = self._next_pictures(sequences)
        if not pictures:
            return []
        served = [
            sequence
            for sequence in sequences
            if any(picture.digest in pictures for picture in sequence.missing)
        ]
        with timed(served, "vision_seconds"):
            encoded, errors = self._encode(list(pictures.values()))
        for sequence in served:
            for picture in [picture for picture in sequence.missing if picture.digest in encoded]:
                sequence.take_embeds(picture, encoded[picture.digest])
        first_errors = [
            (
                sequence,
                next(
                    (errors[picture.digest] for picture in sequence.missing if picture.digest in errors), None
                ),
            )
            for sequence in served
        ]
        return [(sequence, error) for sequence, error in first_errors if error is not None]

    def _find_known(self, sequence: TokenSequence) -> None:
        for picture in list(sequence.missing):
            if (embeds := self.cache.get(picture.digest)) is not None:
                sequence.take_embeds(picture, embeds)
                self._stats.num_picture_cache_hits += 1

    def _next_pictures(self, sequences: Sequence[TokenSequence]) -> dict[bytes, PromptImage]:
        """Pictures for one call, by digest: as many as fit in their order, at least one."""
        chosen: dict[bytes, PromptImage] = {}
        num_patches = 0
        for picture in (picture for sequence in sequences for picture in sequence.missing):
            if picture.digest in chosen:
                continue
            num_patches += picture.num_patches
            if chosen and num_patches > self._max_patches:
                break
            chosen[picture.digest] = picture
        return chosen

    def _encode(self, pictures: Sequence[PromptImage]) -> tuple[dict[bytes, Embeds], dict[bytes, Exception]]:
        """Embeddings and, for pictures on which the engine fails even alone, its exceptions: both by digest."""
        self._stats.num_vision_calls += 1
        try:
            embeds = encode_images(pictures, self._vision, self._model)
        except EngineLostError:
            raise
        except Exception as error:  # noqa: BLE001  any fault of an engine ends the requests that it hit
            if len(pictures) == 1:
                return {}, {pictures[0].digest: error}
            alone = [self._encode([picture]) for picture in pictures]
            return (
                {digest: found for encoded, _ in alone for digest, found in encoded.items()},
                {digest: error for _, errors in alone for digest, error in errors.items()},
            )
        self._stats.num_pictures_encoded += len(pictures)
        encoded = {picture.digest: part for picture, part in zip(pictures, embeds, strict=True)}
        for digest, part in encoded.items():
            self.cache.put(digest, part)
        return encoded, {}
