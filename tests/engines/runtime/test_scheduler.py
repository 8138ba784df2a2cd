from engines.runtime.answer import Event, Request, TokenEvent
from engines.runtime.generation_config import GenerationConfig
from engines.runtime.scheduler import Scheduler
from engines.runtime.scheduler_limits import SchedulerLimits
from tests.engines.runtime.fake_engine import (
    IMAGE,
    MODEL,
    VIDEO,
    FakeDecoder,
    FakeVision,
    make_inputs,
    tokens_without_cache,
)

GREEDY = GenerationConfig(max_new_tokens=8)
TEXT = [11, 12, 13, 14, 15]
PICTURES = [11, 5, IMAGE, IMAGE, IMAGE, 6, 12, 5, VIDEO, VIDEO, 6, 13, 14, 5, IMAGE, 6, 15]


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_scheduler(decoder=None, vision=None, clock=None, **limits) -> Scheduler:
    return Scheduler(
        vision or FakeVision(),
        decoder or FakeDecoder(),
        MODEL,
        SchedulerLimits(**limits),
        clock=clock or Clock(),
    )


def ask(scheduler: Scheduler, token_ids: list[int], seed: int = 0, config=GREEDY, **options):
    """Submit a prompt; returns its ticket and the list that its events will fill."""
    heard: list[Event] = []
    request = Request(make_inputs(token_ids, seed), config, seed)
    return scheduler.submit(request, heard.append, **options), heard


def run_to_the_end(scheduler: Scheduler) -> int:
    """Steps until there is no more work; how many they were."""
    for num_steps in range(1, 1000):
        if not scheduler.step():
            return num_steps
    raise AssertionError("the scheduler does not come to an end")


def tokens(heard: list[Event]) -> list[int]:
    return [event.token_id for event in heard if isinstance(event, TokenEvent)]


def truth(token_ids: list[int], seed: int = 0, config=GREEDY) -> list[int]:
    return tokens_without_cache(make_inputs(token_ids, seed), config, seed)


def test_requests_that_come_while_others_run_are_answered_as_they_are_alone():
    scheduler = make_scheduler(prefill_chunk_tokens=4)
    asked = []
    for seed in range(7):
        prompt = PICTURES if seed % 2 else [*TEXT, *range(20, 20 + seed)]
        asked.append((prompt, seed, ask(scheduler, prompt, seed)[1]))
        scheduler.step()
    run_to_the_end(scheduler)
    for prompt, seed, heard in asked:
        assert tokens(heard) == truth(prompt, seed)
        assert [event.is_last for event in heard] == [False] * 7 + [True]
