import threading

import pytest

from engines.runtime.answer import Event, FailureEvent, FinishEvent, FinishReason, Request, TokenEvent
from engines.runtime.scheduler import Scheduler
from engines.runtime.scheduler_limits import DrainingError
from engines.runtime.service import SchedulerService
from export.checkpoint.generation_config import GenerationConfig
from tests.engines.runtime.fake_engine import (
    MODEL,
    FakeDecoder,
    FakeVision,
    make_inputs,
    tokens_without_cache,
)

CONFIG = GenerationConfig(max_new_tokens=8)
LONG = GenerationConfig(max_new_tokens=1000)
TEXT = [11, 12, 13, 14, 15]


def make_service(decoder: FakeDecoder | None = None) -> SchedulerService:
    return SchedulerService(Scheduler(FakeVision(), decoder or FakeDecoder(), MODEL))


class Heard:
    """A listener that can be waited for."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.first = threading.Event()
        self.ended = threading.Event()

    def __call__(self, event: Event) -> None:
        assert not self.ended.is_set(), "an event after the end"
        self.events.append(event)
        self.first.set()
        if event.is_last:
            self.ended.set()

    def tokens(self) -> list[int]:
        assert self.ended.wait(30)
        return [event.token_id for event in self.events if isinstance(event, TokenEvent)]

    def reason(self) -> FinishReason | None:
        """Why it ended without a further token."""
        assert isinstance(self.events[-1], FinishEvent)
        return self.events[-1].finish_reason


def test_clients_of_many_threads_get_their_own_answers():
    answers: dict[int, list[int]] = {}
    with make_service() as service:

        def client(seed: int) -> None:
            heard = Heard()
            service.submit(Request(make_inputs(TEXT, seed), CONFIG), heard)
            answers[seed] = heard.tokens()

        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    for seed in range(16):
        assert answers[seed] == tokens_without_cache(make_inputs(TEXT, seed), CONFIG, 0)


def test_an_idle_service_wakes_up_for_each_request():
    with make_service() as service:
        for seed in range(3):
            heard = Heard()
            service.submit(Request(make_inputs(TEXT, seed), CONFIG), heard)
            assert len(heard.tokens()) == 8
        assert service.drain(30)
        assert service.stats().num_finished == 3


def test_drain_lets_answers_end_and_says_when_the_time_is_up():
    hold = threading.Event()

    class Waiting(FakeDecoder):
        def forward(self, first_slot, inputs):
            hold.wait(30)
            return super().forward(first_slot, inputs)

    with make_service(Waiting()) as service:
        heard = Heard()
        service.submit(Request(make_inputs(TEXT), CONFIG), heard)
        assert not service.drain(0.02)
        with pytest.raises(DrainingError):
            service.submit(Request(make_inputs(TEXT), CONFIG), Heard())
        hold.set()
        assert service.drain(30)
        assert len(heard.tokens()) == 8


def test_cancel_ends_a_running_answer():
    with make_service(FakeDecoder(capacity=4096)) as service:
        heard = Heard()
        ticket = service.submit(Request(make_inputs(TEXT), LONG), heard)
        assert heard.first.wait(30)
        service.cancel(ticket)
        assert 1 <= len(heard.tokens()) < 1000
        assert heard.reason() == "cancelled"


def test_close_cancels_what_is_left_and_ends_the_thread():
    service = make_service(FakeDecoder(num_slots=1, capacity=4096))
    service.start()
    running, waiting = Heard(), Heard()
    for heard in (running, waiting):
        service.submit(Request(make_inputs(TEXT), LONG), heard)
    assert running.first.wait(30)
    service.close()
    assert [heard.reason() for heard in (running, waiting)] == ["cancelled"] * 2
    assert "scheduler" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(DrainingError):
        service.submit(Request(make_inputs(TEXT), CONFIG), Heard())


def test_a_service_that_never_started_closes():
    make_service().close()


def test_a_fault_of_the_scheduler_itself_ends_the_requests_in_it_and_the_service_goes_on(monkeypatch, caplog):
    service = make_service()

    def broken() -> None:
        raise ZeroDivisionError("a bug")

    with service:
        with monkeypatch.context() as patch:
            patch.setattr(service.scheduler, "_prefill", broken)
            heard = Heard()
            service.submit(Request(make_inputs(TEXT), CONFIG), heard)
            assert heard.tokens() == []
        assert isinstance(heard.events[-1], FailureEvent)
        assert "a scheduling step failed" in caplog.text
        later = Heard()
        service.submit(Request(make_inputs(TEXT), CONFIG), later)
        assert len(later.tokens()) == 8


class Panic(BaseException):
    """As the native libraries raise it: no `Exception`."""


def test_a_native_librarys_panic_ends_the_requests_and_not_the_service(monkeypatch):
    decoder = FakeDecoder()
    forward = decoder.forward
    with make_service(decoder) as service:

        def panic(*_):
            raise Panic("index out of bounds")

        monkeypatch.setattr(decoder, "forward", panic)
        heard = Heard()
        service.submit(Request(make_inputs(TEXT), CONFIG), heard)
        assert heard.ended.wait(30)
        assert isinstance(heard.events[-1], FailureEvent)
        assert isinstance(heard.events[-1].error, Panic)
        monkeypatch.setattr(decoder, "forward", forward)
        heard = Heard()
        service.submit(Request(make_inputs(TEXT), CONFIG), heard)
        assert heard.tokens() == tokens_without_cache(make_inputs(TEXT), CONFIG, 0)
