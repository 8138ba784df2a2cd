"""Limits of what a server takes on, and counts of what it did."""

from dataclasses import dataclass, fields

from export.errors import UserError


class TryLaterError(Exception):
    """A request that is sound but cannot be taken now. The message says why; the same request may be sent again."""


class QueueFullError(TryLaterError):
    """Too many requests, or too many bytes of pictures, are waiting already."""


class DrainingError(TryLaterError):
    """The server finishes what it has and takes nothing new."""


@dataclass(frozen=True)
class SchedulerLimits:
    """Bounds on what a scheduler holds and does at once. What grows with its users has a bound here.

    Raises:
        UserError: values out of range; all of them at once.
    """

    max_queue: int = 64
    """Requests that wait for a KV slot."""
    max_queue_bytes: int = 2 << 30
    """Patches of requests whose pictures are not encoded yet. One request alone may exceed it."""
    prefill_chunk_tokens: int = 256
    """Prompt tokens a step: how long a long prompt may hold up the answers that are being written."""
    max_tokens_per_request: int | None = None
    """The largest `max_new_tokens` that a request may ask for; None leaves it to the context."""
    max_patches_per_picture: int | None = None
    """Larger pictures and videos are refused: set it to what the vision engine was built for."""
    max_vision_patches_per_call: int = 4096
    """Pictures of several requests are packed into one call up to this many patches; a larger one goes alone."""
    patience_seconds: float = 2.0
    """How long requests with smaller pictures pass one whose pictures wait to be encoded."""
    embedding_cache_bytes: int = 256 << 20
    """Visual embeddings kept for pictures that come again, in the host's memory; 0 keeps none."""
    device_embedding_cache_bytes: int = 256 << 20
    """The same on the device of an engine that leaves them there; what does not fit goes to the host. 0 keeps none."""
    reuse_prefixes: bool = True
    """Whether a prompt may start behind what an earlier one left in its slot. It can be told from the time to the first
    token: switch it, and the embedding cache, off where users must not learn what others have sent."""
    min_tokens_per_call: int = 1
    """2 keeps a decoder from ever computing one token alone, for which ONNX Runtime has another algorithm than for
    several: with `num_threads=1` an answer's logits are then the same bits in any company (docs/numerics.md)."""

    def __post_init__(self) -> None:
        may_be_zero = (
            "max_queue_bytes",
            "patience_seconds",
            "embedding_cache_bytes",
            "device_embedding_cache_bytes",
            "reuse_prefixes",
        )
        problems = []
        for field in fields(self):
            value, smallest = getattr(self, field.name), 0 if field.name in may_be_zero else 1
            if value is not None and value < smallest:
                problems.append(f"{field.name} must be at least {smallest}, found {value}.")
        # A chunk and what it leaves must both be large enough.
        smallest = 2 * self.min_tokens_per_call - 1
        if self.prefill_chunk_tokens < smallest:
            problems.append(
                f"prefill_chunk_tokens must be at least {smallest} where min_tokens_per_call is "
                f"{self.min_tokens_per_call}, found {self.prefill_chunk_tokens}."
            )
        if problems:
            raise UserError("\n".join(problems))


@dataclass
class SchedulerStats:
    """What a scheduler holds now, and what it did since it began. Totals only grow: a rate is a difference."""

    num_slots: int
    queue_length: int = 0
    slots_used: int = 0
    embedding_cache_bytes: int = 0

    num_submitted: int = 0
    num_refused: int = 0
    """Sent away with "try later"."""
    num_finished: int = 0
    """Answered to the end."""
    num_cancelled: int = 0
    num_expired: int = 0
    """Their deadline passed."""
    num_failed: int = 0

    num_prompt_tokens: int = 0
    """Of admitted requests."""
    num_reused_tokens: int = 0
    """Those of them that were in the KV slot already."""
    num_new_tokens: int = 0
    num_pictures_encoded: int = 0
    num_picture_cache_hits: int = 0
    num_vision_calls: int = 0
    num_prefill_calls: int = 0
    num_decode_calls: int = 0
    num_decode_rows: int = 0
    """Answers that a decode call went on with, over all calls: divided by the calls, the mean batch."""

    num_admitted: int = 0
    queue_seconds: float = 0.0
    """Summed over admitted requests."""
    num_first_tokens: int = 0
    first_token_seconds: float = 0.0
    """From submission to the first token, summed over requests that have one."""
