"""Any order of requests, cancellations, deadlines and faults: no slot is lost, no answer differs from the one alone."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engines.runtime.answer import Event, FailureEvent, Request, TokenEvent
from engines.runtime.scheduler import Scheduler
from engines.runtime.scheduler_limits import QueueFullError, SchedulerLimits
from engines.runtime.sequence import Ticket
from export.checkpoint.generation_config import GenerationConfig
from tests.engines.runtime.fake_engine import (
    IMAGE,
    KEY,
    MODEL,
    VIDEO,
    VOCAB,
    FakeDecoder,
    FakeVision,
    embed,
    encode_patches,
    make_conversation,
    tokens_without_cache,
)

NUM_SLOTS, CAPACITY, MAX_QUEUE = 3, 24, 4
TRUTHS: dict[tuple, list[int]] = {}
"""Answers without cache by prompt: computed once for all examples."""


class Faults:
    """Switched on by the machine: the next so many calls raise."""

    def __init__(self) -> None:
        self.num_left = 0

    def check(self) -> None:
        if self.num_left:
            self.num_left -= 1
            raise RuntimeError("the device is lost")


class FaultyVision(FakeVision):
    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self.faults = faults

    def encode(self, inputs):
        self.faults.check()
        return super().encode(inputs)


class FaultyDecoder(FakeDecoder):
    def __init__(self, faults: Faults) -> None:
        super().__init__(NUM_SLOTS, CAPACITY)
        self.faults = faults

    def forward(self, first_slot, inputs):
        self.faults.check()
        return super().forward(first_slot, inputs)


@dataclass
class Asked:
    """One request and what was heard of it."""

    token_ids: list[int]
    pictures: list[int]
    max_new_tokens: int
    ticket: Ticket | None = None
    events: list[Event] = field(default_factory=list)

    def tokens(self) -> list[int]:
        return [event.token_id for event in self.events if isinstance(event, TokenEvent)]

    def keys(self) -> npt.NDArray:
        """What the cache must hold once prompt and answer so far are computed."""
        inputs = make_conversation(self.token_ids, self.pictures)
        token_ids = np.array([*self.token_ids, *self.tokens()], np.int64)
        positions = np.tile(np.arange(len(token_ids)), (3, 1))
        return embed(token_ids, encode_patches(inputs.patches), positions) @ KEY

    def truth(self) -> list[int]:
        key = (*self.token_ids, -1, *self.pictures)
        if key not in TRUTHS:
            inputs = make_conversation(self.token_ids, self.pictures)
            TRUTHS[key] = tokens_without_cache(inputs, GenerationConfig(max_new_tokens=6), 0)
        return TRUTHS[key][: min(self.max_new_tokens, CAPACITY + 1 - len(self.token_ids))]


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.faults = Faults()
        self.asked: list[Asked] = []
        limits = SchedulerLimits(
            max_queue=MAX_QUEUE,
            prefill_chunk_tokens=2,
            max_vision_patches_per_call=8,
            embedding_cache_bytes=3 * 12 * 4,  # three pictures
        )
        self.decoder = FaultyDecoder(self.faults)
        self.scheduler = Scheduler(
            FaultyVision(self.faults), self.decoder, MODEL, limits, clock=lambda: self.now
        )

    @rule(
        token_ids=st.lists(st.sampled_from([11, 12, 13, IMAGE]), min_size=1, max_size=10),
        pictures=st.lists(st.integers(0, 4), min_size=10, max_size=10),
        max_new_tokens=st.integers(1, 6),
        deadline=st.none() | st.integers(1, 6),
    )
    def ask(self, token_ids, pictures, max_new_tokens, deadline):
        self._submit(Asked(token_ids, pictures[: token_ids.count(IMAGE)], max_new_tokens), deadline)

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), new_token=st.integers(11, VOCAB - 1), max_new_tokens=st.integers(1, 6))
    def go_on_with_a_conversation(self, data, new_token, max_new_tokens):
        earlier = data.draw(st.sampled_from(self.asked))
        answer = [token for token in earlier.tokens() if token not in (IMAGE, VIDEO)]
        token_ids = [*earlier.token_ids, *answer, new_token][:CAPACITY]
        self._submit(Asked(token_ids, list(earlier.pictures), max_new_tokens), None)

    def _submit(self, asked: Asked, deadline: float | None) -> None:
        was_full = self.scheduler.stats().queue_length >= MAX_QUEUE
        request = Request(
            make_conversation(asked.token_ids, asked.pictures),
            GenerationConfig(max_new_tokens=asked.max_new_tokens),
        )
        try:
            asked.ticket = self.scheduler.submit(request, asked.events.append, deadline_seconds=deadline)
        except QueueFullError:
            assert was_full
            return
        assert not was_full
        self.asked.append(asked)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data):
        asked = data.draw(st.sampled_from(self.asked))
        assert asked.ticket
        self.scheduler.cancel(asked.ticket)

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds):
        self.now += seconds

    @rule(num_calls=st.just(1))
    def break_engines(self, num_calls):
        self.faults.num_left = num_calls

    @rule(num_steps=st.integers(1, 4))
    def step(self, num_steps):
        for _ in range(num_steps):
            self.scheduler.step()

    @invariant()
    def every_slot_is_free_or_in_use(self):
        used = [sequence.slot for sequence in self.scheduler._running]
        assert sorted([*used, *self.scheduler._slots._kept]) == list(range(NUM_SLOTS))

    @invariant()
    def requests_are_admitted_in_the_order_in_which_they_came(self):
        waiting = [job.ticket.number for job in self.scheduler._queue]
        running = [job.ticket.number for job in self.scheduler._running]
        assert running + waiting == sorted(running + waiting)

    @invariant()
    def the_cache_of_each_answer_holds_the_keys_of_its_own_tokens_and_pictures(self):
        by_ticket = {id(asked.ticket): asked for asked in self.asked}
        for answer in self.scheduler._running:
            asked = by_ticket[id(answer.ticket)]
            keys = self.decoder.keys[answer.slot, : answer.num_cached_tokens]
            np.testing.assert_allclose(keys, asked.keys()[: answer.num_cached_tokens], atol=1e-5)

    @invariant()
    def answers_are_beginnings_of_those_alone_and_nothing_comes_after_the_end(self):
        for asked in self.asked:
            assert asked.tokens() == asked.truth()[: len(asked.tokens())]
            assert not any(event.is_last for event in asked.events[:-1])

    def teardown(self):
        self.faults.num_left = 0
        while self.scheduler.step():
            pass
        for asked in self.asked:
            assert asked.events[-1].is_last
            if isinstance(asked.events[-1], TokenEvent):
                assert asked.tokens() == asked.truth()
        stats = self.scheduler.stats()
        assert (stats.slots_used, stats.queue_length, self.scheduler._picture_bytes) == (0, 0, 0)
        assert stats.num_submitted == len(self.asked)
        ended = stats.num_finished + stats.num_cancelled + stats.num_expired + stats.num_failed
        assert ended == len(self.asked)
        assert stats.num_failed == sum(isinstance(asked.events[-1], FailureEvent) for asked in self.asked)
        assert stats.embedding_cache_bytes <= 3 * 12 * 4


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
