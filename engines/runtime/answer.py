"""What a request asks of the runtime, and what its caller hears: events and timings."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from engines.runtime.tokens.sampling import TokenLogprobs
from export.checkpoint.generation_config import GenerationConfig
from export.errors import UserError

if TYPE_CHECKING:  # keeps Pillow, PyAV and Jinja2 out of a process that only generates
    from engines.runtime.tokens.guided import Guide
    from export.inputs import ModelInputs

FinishReason = Literal["stop", "length", "capacity", "cancelled", "deadline"]
"""An end-of-sequence token came; `max_new_tokens` are there; the KV slot is full; given up; out of time."""

Phase = Literal["vision_seconds", "prefill_seconds", "decode_seconds"]


@dataclass(frozen=True)
class Timings:
    """What one answer took so far. In a batch, a shared call counts in full for each answer it served."""

    num_prompt_tokens: int
    num_visual_tokens: int
    num_new_tokens: int = 0
    num_reused_tokens: int = 0
    """Prompt tokens that an earlier answer had left in the KV slot."""
    queue_seconds: float = 0.0
    """From being asked to having a KV slot."""
    vision_seconds: float = 0.0
    prefill_seconds: float = 0.0
    """Includes the choice of the first new token."""
    decode_seconds: float = 0.0
    """All new tokens but the first."""

    @property
    def decode_tokens_per_second(self) -> float:
        """0 while there is nothing to measure."""
        return (self.num_new_tokens - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0


@dataclass(frozen=True)
class TokenEvent:
    """One new token. The last event of an answer has a `finish_reason`; an end-of-sequence token is an event too."""

    request_index: int
    """Which request of the call it answers, counted from 0."""
    token_id: int
    finish_reason: FinishReason | None
    timings: Timings
    logprobs: TokenLogprobs | None = None
    """Where the request's `num_logprobs` asks for them."""

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None


@dataclass(frozen=True)
class FinishEvent:
    """The end of an answer that came without a further token: it was cancelled, or its deadline passed."""

    request_index: int
    finish_reason: FinishReason
    timings: Timings
    is_last: ClassVar[bool] = True


@dataclass(frozen=True)
class FailureEvent:
    """The end of an answer that an engine could not go on with. It says nothing about any other answer."""

    request_index: int
    error: BaseException
    timings: Timings
    is_last: ClassVar[bool] = True


Event = TokenEvent | FinishEvent | FailureEvent
"""What the caller of one request hears. Exactly one event `is_last`, and none comes after it."""


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt and how to answer it. The same seed gives the same answer, alone or in a batch; None draws a new one.

    Raises:
        UserError: a seed that is no whole number of at least 0.
    """

    inputs: "ModelInputs"
    config: GenerationConfig
    seed: int | None = None
    guide: "Guide | None" = None
    """What the answer must look like. It follows this one answer: another request needs its own."""

    def __post_init__(self) -> None:
        valid = self.seed is None or (isinstance(self.seed, int) and self.seed >= 0)
        if not valid:
            raise UserError(f"seed must be a whole number of at least 0, found {self.seed!r}.")

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.inputs.token_ids)
