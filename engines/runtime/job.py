"""What the scheduler holds for one request, from being asked to its last event."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from engines.runtime.answer import Answer, Event, FinishReason, Request, Timings
from engines.runtime.kv_slots import CacheContent
from engines.runtime.pictures import Picture

Listener = Callable[[Event], None]


@dataclass(eq=False)
class Ticket:
    """What the caller of `submit` holds: its request's number, which its events carry, and the way to give it up."""

    number: int
    is_cancelled: bool = False


@dataclass(eq=False)
class Job:
    """A request on its way: waiting without an answer, then with one in a slot."""

    ticket: Ticket
    request: Request
    on_event: Listener
    submitted_at: float
    deadline_at: float | None
    content: CacheContent
    """What its prompt will put into the cache."""
    pictures: tuple[Picture, ...]
    """Until they are encoded."""
    answer: Answer | None = None
    embeds: dict[bytes, npt.NDArray[np.float32]] = field(default_factory=dict)
    """Visual embeddings found or encoded so far, by picture digest."""
    missing: list[Picture] = field(default_factory=list)
    """Pictures that prefill needs and that have no embeddings yet."""

    @property
    def started(self) -> Answer:
        """The answer of a job that has a slot."""
        assert self.answer is not None
        return self.answer

    @property
    def is_decoding(self) -> bool:
        return self.answer is not None and self.answer.is_prefilled

    @property
    def timings(self) -> Timings:
        return self.answer.timings if self.answer else Timings(self.request.num_prompt_tokens, 0)

    def why_ended(self, now: float) -> FinishReason | None:
        """Whether it was given up or its time ran out."""
        if self.ticket.is_cancelled:
            return "cancelled"
        if self.deadline_at is not None and now >= self.deadline_at:
            return "deadline"
        return None

    def take_embeds(self, picture: Picture, embeds: npt.NDArray[np.float32]) -> None:
        """A picture's visual embeddings [V_i, C] are there."""
        self.embeds[picture.digest] = embeds
        self.missing.remove(picture)

    def join_embeds(self, patches_per_token: int, hidden_size: int) -> None:
        """All pictures are there: put their embeddings in order.

        Pictures that lie wholly in what the slot held already were not encoded; nothing reads their rows.
        """
        parts = [
            self.embeds[picture.digest]
            if picture.digest in self.embeds
            else np.zeros((picture.num_patches // patches_per_token, hidden_size), np.float32)
            for picture in self.pictures
        ]
        self.started.visual_embeds = np.concatenate(parts) if len(parts) > 1 else parts[0]
        self.embeds = {}

    def forget_pictures(self) -> int:
        """Let the patches go, which are far larger than all the rest; returns their bytes."""
        inputs = self.request.inputs
        self.pictures, self.missing, self.embeds = (), [], {}
        self.request = replace(self.request, inputs=replace(inputs, patches=inputs.patches[:0].copy()))
        if self.answer:
            self.answer.request = self.request
        return inputs.patches.nbytes

    def content_in_slot(self, longest: int) -> CacheContent:
        """What the slot holds now: the prompt and the new tokens that were computed with, `longest` at most."""
        num_cached = min(self.started.num_cached_tokens, longest)
        num_prompt = self.started.num_prompt_tokens
        if num_cached <= num_prompt:
            return self.content.first(num_cached)
        positions = np.arange(num_prompt, num_cached) + self.request.inputs.position_delta
        return CacheContent(
            np.concatenate([self.content.token_ids, self.started.token_ids])[:num_cached],
            np.concatenate([self.content.position_ids, np.tile(positions.astype(np.int32), (3, 1))], axis=1),
            self.content.pictures,
            num_prompt,
        )
