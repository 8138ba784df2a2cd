"""The loss of an engine that computes in other processes: what it raises, and who starts it again."""

from typing import Protocol, TypeGuard

from engines.runtime.scheduler_limits import TryLaterError
from engines.session import DecoderSession, EngineError


class EngineLostError(TryLaterError, EngineError):
    """The processes that compute have ended, and with them every KV cache: each answer being written ends.

    The same request may be sent again: they are started anew.
    """


class RecoverableDecoder(DecoderSession, Protocol):
    """A decoder whose caches may be lost, and which can be started again."""

    def recover(self) -> bool:
        """Start again what has ended.

        Until this is called, every call of an engine that was lost raises `EngineLostError`: whoever holds what its
        caches held must hear of it first.

        Returns:
            Whether the caches are new ones.

        Raises:
            EngineLostError: it cannot be started.
        """
        ...


def is_recoverable(decoder: DecoderSession) -> TypeGuard[RecoverableDecoder]:
    """Whether a decoder may be lost and started again."""
    return hasattr(decoder, "recover")
