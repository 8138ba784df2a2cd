"""One answer while it is being written: what the runtime knows of it, and the events that it tells.

An `Answer` is one request in one KV slot: how much of its prompt is cached, which tokens it has, whether it
is done. It knows nothing of engines, other answers or text. Events are what its caller hears.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from engines.runtime.penalties import Written
from engines.runtime.sampling import TokenLogprobs, next_token, token_logprobs
from export.config import ModelConfig
from export.errors import UserError
from export.generation_config import GenerationConfig

if TYPE_CHECKING:  # keeps Pillow, PyAV and Jinja2 out of a process that only generates
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

    def __post_init__(self) -> None:
        valid = self.seed is None or (isinstance(self.seed, int) and self.seed >= 0)
        if not valid:
            raise UserError(f"seed must be a whole number of at least 0, found {self.seed!r}.")

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.inputs.token_ids)


class Answer:
    """The living state of one request: created with an empty slot, grown by `prefill` and `decode_one_token`."""

    def __init__(
        self,
        request: Request,
        index: int,
        slot: int,
        visual_embeds: npt.NDArray[np.float32],
        model: ModelConfig,
    ) -> None:
        self.request = request
        self.index = index
        self.slot = slot
        self.visual_embeds = visual_embeds  # [V, C]
        self.visual_offsets = visual_offsets(request.inputs.token_ids, model)  # [S + 1]
        self.num_prompt_tokens = request.num_prompt_tokens
        self.num_visual_tokens = int(self.visual_offsets[-1])
        self.num_cached_tokens = 0
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.num_reused_tokens = 0
        self.queue_seconds = self.vision_seconds = self.prefill_seconds = self.decode_seconds = 0.0
        self._generator = np.random.default_rng(request.seed)
        self._seen = np.zeros(model.decoder.vocab_size, dtype=np.bool_)
        self._seen[request.inputs.token_ids] = True
        self._written = Written(request.inputs.token_ids, self.token_ids)
        self._logprobs: TokenLogprobs | None = None

    @property
    def timings(self) -> Timings:
        """What it took until now."""
        return Timings(
            self.num_prompt_tokens,
            self.num_visual_tokens,
            len(self.token_ids),
            self.num_reused_tokens,
            self.queue_seconds,
            self.vision_seconds,
            self.prefill_seconds,
            self.decode_seconds,
        )

    @property
    def is_prefilled(self) -> bool:
        return self.num_cached_tokens >= self.num_prompt_tokens

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    def accept(self, logits: npt.NDArray[np.float32], capacity: int) -> None:
        """Choose the next token from logits [vocab] and notice whether it is the last.

        Raises:
            EngineError: the logits are not finite.
        """
        config = self.request.config
        token_id = next_token(logits, self._seen, config, self._generator, self._written)
        self._seen[token_id] = True
        if config.num_logprobs is not None:
            self._logprobs = token_logprobs(logits, token_id, config.num_logprobs)
        self.token_ids.append(token_id)
        if token_id in config.eos_token_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= config.max_new_tokens:
            self.finish_reason = "length"
        elif self.num_cached_tokens >= capacity:
            self.finish_reason = "capacity"

    def accept_decoded(self, logits: npt.NDArray[np.float32], capacity: int) -> None:
        """The newest token is in the cache now, and `logits` [vocab] choose the next. Raises as `accept`."""
        self.num_cached_tokens += 1
        self.accept(logits, capacity)

    def event(self) -> TokenEvent:
        """The newest token, told to the caller."""
        return TokenEvent(self.index, self.token_ids[-1], self.finish_reason, self.timings, self._logprobs)


def visual_offsets(token_ids: npt.NDArray[np.int64], model: ModelConfig) -> npt.NDArray[np.int64]:
    """How many visual tokens stand before each token: [S] ids to [S + 1] counts, the last one being all.

    Prompt tokens a .. b-1 take rows offsets[a] .. offsets[b]-1 of the visual embeddings.
    """
    is_visual = (token_ids == model.image_token_id) | (token_ids == model.video_token_id)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(is_visual, dtype=np.int64)])


@contextmanager
def timed(answers: Iterable[Answer], phase: Phase) -> Iterator[None]:
    """Add the wall time of the block to `phase` of each answer."""
    start = perf_counter()
    yield
    elapsed = perf_counter() - start
    for answer in answers:
        setattr(answer, phase, getattr(answer, phase) + elapsed)
