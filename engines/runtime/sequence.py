"""One request from its submission to its last token: where it waits, which KV slot it has, what it has written."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import numpy.typing as npt

from engines.runtime.answer import Event, FinishReason, Phase, Request, Timings, TokenEvent
from engines.runtime.kv_slots import CacheContent
from engines.runtime.tokens.choose import Outcome
from engines.runtime.tokens.chooser import Chooser
from engines.runtime.tokens.sampling import TokenLogprobs
from engines.runtime.tokens.step_logits import StepLogits
from engines.runtime.vision.images import PromptImage
from export.checkpoint.config import ModelConfig
from export.inputs import Embeds, join_rows

Listener = Callable[[Event], None]

NO_SLOT = -1


@dataclass(eq=False)
class Ticket:
    """What the caller of `submit` holds: its request's number, which its events carry, and the way to give it up."""

    number: int
    is_cancelled: bool = False


class TokenSequence:
    """Prompt and answer of one request: it waits without a slot, takes one, and grows in it token by token.

    It knows nothing of engines, of other requests or of text. What only a scheduler needs has a default.

    Args:
        request: what is asked.
        number: which request of its caller it is.
        model: the checkpoint's configuration.
        pictures: of the request; kept until they are encoded.
        on_event: hears what happens to it.
        submitted_at, deadline_at: on the scheduler's clock.
    """

    def __init__(
        self,
        request: Request,
        number: int,
        model: ModelConfig,
        *,
        pictures: tuple[PromptImage, ...] = (),
        on_event: Listener | None = None,
        submitted_at: float = 0.0,
        deadline_at: float | None = None,
    ) -> None:
        self.request = request
        self.ticket = Ticket(number)
        self.on_event = on_event
        self.submitted_at, self.deadline_at = submitted_at, deadline_at
        self.content = CacheContent(
            request.inputs.token_ids,
            request.inputs.position_ids,
            tuple((picture.first_token, picture.digest) for picture in pictures),
            request.num_prompt_tokens,
        )
        """What its prompt will put into the cache."""
        self.pictures = pictures
        self.missing: list[PromptImage] = []
        """Pictures that prefill needs and that have no embeddings yet."""
        self._embeds: dict[bytes, Embeds] = {}  # found or encoded so far, by picture digest
        self.visual_embeds: Embeds = np.zeros((0, model.decoder.hidden_size), np.float32)  # [V, C]
        self.visual_offsets = visual_offsets(request.inputs.token_ids, model)  # [S + 1]
        self.num_prompt_tokens = request.num_prompt_tokens
        self.num_visual_tokens = int(self.visual_offsets[-1])
        self.slot = NO_SLOT
        self.num_cached_tokens = 0
        self.num_reused_tokens = 0
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.queue_seconds = self.vision_seconds = self.prefill_seconds = self.decode_seconds = 0.0
        self._vocab_size = model.decoder.vocab_size
        self._chooser: Chooser | None = None
        self._logprobs: TokenLogprobs | None = None

    @property
    def number(self) -> int:
        return self.ticket.number

    @property
    def has_slot(self) -> bool:
        return self.slot != NO_SLOT

    @property
    def is_prefilled(self) -> bool:
        return self.num_cached_tokens >= self.num_prompt_tokens

    @property
    def is_ready(self) -> bool:
        """Whether its prompt can go on into the cache: its pictures are there."""
        return self.has_slot and not self.is_prefilled and not self.pictures

    @property
    def num_missing_patches(self) -> int:
        """Of pictures that are not encoded yet."""
        return sum(picture.num_patches for picture in self.missing)

    @property
    def is_decoding(self) -> bool:
        return self.has_slot and self.is_prefilled

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

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

    def why_ended(self, now: float) -> FinishReason | None:
        """Whether it was given up or its time ran out."""
        if self.ticket.is_cancelled:
            return "cancelled"
        if self.deadline_at is not None and now >= self.deadline_at:
            return "deadline"
        return None

    def take_slot(self, slot: int, num_reused_tokens: int = 0) -> None:
        """Begin in a slot whose first tokens are the prompt's already."""
        self.slot = slot
        self.num_cached_tokens = self.num_reused_tokens = num_reused_tokens
        self.missing = [picture for picture in self.pictures if picture.last_token >= num_reused_tokens]
        # Holds arrays as large as the vocabulary: nothing that waits has one.
        request = self.request
        self._chooser = Chooser(
            request.config,
            request.inputs.token_ids,
            self.token_ids,
            self._vocab_size,
            request.seed,
            request.guide,
        )

    # Its pictures

    def take_embeds(self, picture: PromptImage, embeds: Embeds) -> None:
        """A picture's visual embeddings [V_i, C] are there."""
        self._embeds[picture.digest] = embeds
        self.missing.remove(picture)

    def join_embeds(self, patches_per_token: int, hidden_size: int) -> None:
        """All pictures are there: put their embeddings in order.

        Pictures that lie wholly in what the slot held already were not encoded; nothing reads their rows.
        """
        parts: list[Embeds] = [
            self._embeds[picture.digest]
            if picture.digest in self._embeds
            else np.zeros((picture.num_patches // patches_per_token, hidden_size), np.float32)
            for picture in self.pictures
        ]
        self.visual_embeds = join_rows(parts)
        self._embeds = {}

    def forget_pictures(self) -> int:
        """Let the patches go, which are far larger than all the rest; returns their bytes."""
        inputs = self.request.inputs
        self.pictures, self.missing, self._embeds = (), [], {}
        self.request = replace(self.request, inputs=replace(inputs, patches=inputs.patches[:0].copy()))
        return inputs.patches.nbytes

    # Its answer

    @property
    def chooser(self) -> Chooser:
        """What chooses its tokens; it has a slot."""
        assert self._chooser is not None
        return self._chooser

    def accept(self, token_id: int, capacity: int) -> None:
        """Take the next token and notice whether it is the last."""
        config, guide = self.request.config, self.request.guide
        self.chooser.note(token_id)
        self.token_ids.append(token_id)
        is_end = token_id in config.eos_token_ids
        if guide is not None and not is_end:
            guide.accept(token_id)
        if is_end or (guide is not None and guide.is_over):
            self.finish_reason = "stop"
        elif len(self.token_ids) >= config.max_new_tokens:
            self.finish_reason = "length"
        elif self.num_cached_tokens >= capacity:
            self.finish_reason = "capacity"

    def tell_logprobs(self, logprobs: TokenLogprobs) -> None:
        """How likely the newest token was."""
        self._logprobs = logprobs

    def event(self) -> TokenEvent:
        """The newest token, told to the caller."""
        return TokenEvent(self.number, self.token_ids[-1], self.finish_reason, self.timings, self._logprobs)

    def content_in_slot(self, longest: int) -> CacheContent:
        """What the slot holds now: the prompt and the new tokens that were computed with, `longest` at most."""
        num_cached = min(self.num_cached_tokens, longest)
        num_prompt = self.num_prompt_tokens
        if num_cached <= num_prompt:
            return self.content.first(num_cached)
        positions = np.arange(num_prompt, num_cached) + self.request.inputs.position_delta
        return CacheContent(
            np.concatenate([self.content.token_ids, self.token_ids])[:num_cached],
            np.concatenate([self.content.position_ids, np.tile(positions.astype(np.int32), (3, 1))], axis=1),
            self.content.pictures,
            num_prompt,
        )


def visual_offsets(token_ids: npt.NDArray[np.int64], model: ModelConfig) -> npt.NDArray[np.int64]:
    """How many visual tokens stand before each token: [S] ids to [S + 1] counts, the last one being all.

    Prompt tokens a .. b-1 take rows offsets[a] .. offsets[b]-1 of the visual embeddings.
    """
    is_visual = (token_ids == model.image_token_id) | (token_ids == model.video_token_id)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(is_visual, dtype=np.int64)])


def accept_tokens(
    step: StepLogits, rows: Sequence[int], sequences: Sequence[TokenSequence], capacity: int
) -> list[Exception | None]:
    """Choose the next token of some rows of a call and take it; for each what kept it from having one, or None."""
    outcomes = step.choose(rows, [sequence.chooser for sequence in sequences])
    return [
        _taken(step, row, sequence, outcome, capacity)
        for row, sequence, outcome in zip(rows, sequences, outcomes, strict=True)
    ]


def _taken(
    step: StepLogits, row: int, sequence: TokenSequence, outcome: Outcome, capacity: int
) -> Exception | None:
    if isinstance(outcome, Exception):
        return outcome
    try:
        num_logprobs = sequence.request.config.num_logprobs
        if num_logprobs is not None:
            sequence.tell_logprobs(step.logprobs(row, outcome, num_logprobs))
        sequence.accept(outcome, capacity)
    except Exception as error:  # noqa: BLE001  a grammar that ran into a bound: ends this request and no other
        return error
    return None


@contextmanager
def timed(sequences: Iterable[TokenSequence], phase: Phase) -> Iterator[None]:
    """Add the wall time of the block to `phase` of each sequence."""
    start = perf_counter()
    yield
    elapsed = perf_counter() - start
    for sequence in sequences:
        setattr(sequence, phase, getattr(sequence, phase) + elapsed)
