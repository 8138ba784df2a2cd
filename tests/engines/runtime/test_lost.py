"""The scheduler over an engine whose processes end: what was in a slot ends, what waits is answered by the next."""

import pytest

from engines.runtime.answer import FailureEvent
from engines.runtime.lost import EngineLostError
from tests.engines.runtime.fake_engine import FakeDecoder, FakeVision, make_conversation, make_inputs
from tests.engines.runtime.test_scheduler import (
    GREEDY,
    PICTURES,
    TEXT,
    answered,
    ask,
    make_scheduler,
    run_to_the_end,
    tokens,
    truth,
)


class Processes:
    """What vision and decoder of an engine in other processes share: whether those are there."""

    def __init__(self) -> None:
        self.is_lost = False
        self.num_starts = 0
        self.can_start = True

    def check(self) -> None:
        if self.is_lost:
            raise EngineLostError("a rank ended")


class LosableDecoder(FakeDecoder):
    """Its cache is gone with its processes."""

    def __init__(self, processes, **options) -> None:
        super().__init__(**options)
        self.processes, self.options = processes, options
        self.dies_at: int | None = None
        self.num_calls = 0

    def forward(self, first_slot, inputs):
        self.num_calls += 1
        if self.num_calls == self.dies_at:
            self.processes.is_lost = True
        self.processes.check()
        return super().forward(first_slot, inputs)

    def recover(self):
        if not self.processes.is_lost:
            return False
        if not self.processes.can_start:
            raise EngineLostError("cannot be started")
        FakeDecoder.__init__(self, **self.options)
        self.processes.is_lost = False
        self.processes.num_starts += 1
        return True


class LosableVision(FakeVision):
    def __init__(self, processes) -> None:
        super().__init__()
        self.processes, self.dies = processes, False

    def encode(self, inputs):
        if self.dies:
            self.dies, self.processes.is_lost = False, True
        self.processes.check()
        return super().encode(inputs)


@pytest.fixture
def processes():
    return Processes()


@pytest.fixture
def decoder(processes):
    return LosableDecoder(processes)


def failures(heard):
    return [event.error for event in heard if isinstance(event, FailureEvent)]


@pytest.mark.parametrize("dies_at", [1, 2, 3, 5, 8])
def test_all_in_a_slot_end_and_those_that_wait_are_answered_by_the_next(processes, decoder, dies_at):
    scheduler = make_scheduler(decoder, prefill_chunk_tokens=2)
    prompts = [make_inputs(TEXT, seed) for seed in range(decoder.num_slots + 2)]
    decoder.dies_at = dies_at
    heard = [ask(scheduler, inputs)[1] for inputs in prompts]
    run_to_the_end(scheduler)
    for one in heard[: decoder.num_slots]:
        assert [type(error) for error in failures(one)] == [EngineLostError]
    for inputs, one in zip(prompts[decoder.num_slots :], heard[decoder.num_slots :], strict=True):
        assert tokens(one) == truth(inputs)
    assert processes.num_starts == 1
    assert scheduler.stats().slots_used == 0


def test_what_a_lost_cache_held_is_not_relied_on(processes, decoder):
    scheduler = make_scheduler(decoder)
    inputs = make_conversation(TEXT)
    assert answered(scheduler, inputs) == truth(inputs)
    processes.is_lost = True  # while nobody asks
    assert answered(scheduler, inputs) == truth(inputs)
    assert scheduler.stats().num_reused_tokens == 0
    assert answered(scheduler, inputs) == truth(inputs)
    assert scheduler.stats().num_reused_tokens > 0


def test_a_vision_call_that_is_lost_is_not_tried_picture_by_picture(processes, decoder):
    vision = LosableVision(processes)
    scheduler = make_scheduler(decoder, vision)
    vision.dies = True
    inputs = make_inputs(PICTURES)
    _, heard = ask(scheduler, inputs)
    run_to_the_end(scheduler)
    assert [type(error) for error in failures(heard)] == [EngineLostError]
    assert answered(scheduler, inputs) == truth(inputs)
    assert processes.num_starts == 1


def test_what_cannot_be_started_again_ends_everybody_and_is_tried_at_the_next_question(processes, decoder):
    scheduler = make_scheduler(decoder)
    processes.can_start = False
    decoder.dies_at = 2
    heard = [ask(scheduler, make_inputs(TEXT, seed))[1] for seed in range(decoder.num_slots + 1)]
    run_to_the_end(scheduler)
    assert all(isinstance(one[-1], FailureEvent) for one in heard)
    assert "cannot be started" in str(failures(heard[-1])[0])
    processes.can_start = True
    inputs = make_inputs(TEXT)
    assert answered(scheduler, inputs) == truth(inputs, GREEDY)
