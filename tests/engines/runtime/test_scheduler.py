import numpy as np
import pytest

from engines.runtime.answer import Event, FailureEvent, FinishEvent, FinishReason, Request, TokenEvent
from engines.runtime.scheduler import Scheduler
from engines.runtime.scheduler_limits import DrainingError, QueueFullError, SchedulerLimits
from engines.session import EngineError
from export.checkpoint.generation_config import GenerationConfig
from export.errors import UserError
from export.inputs import ModelInputs
from tests.engines.runtime.fake_engine import (
    IMAGE,
    MODEL,
    VIDEO,
    VOCAB,
    FakeDecoder,
    FakeVision,
    make_conversation,
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


class CountingVision(FakeVision):
    """Notes how many patches each call had; cannot see pictures whose first value is in `blind_to`."""

    def __init__(self) -> None:
        super().__init__()
        self.call_patches: list[int] = []
        self.blind_to: set[float] = set()

    def encode(self, inputs):
        self.call_patches.append(len(inputs.patches))
        if self.blind_to & set(inputs.patches[:, 0].tolist()):
            raise EngineError("no memory for these patches")
        return super().encode(inputs)


def make_scheduler(decoder=None, vision=None, clock=None, **limits) -> Scheduler:
    return Scheduler(
        vision or FakeVision(),
        decoder or FakeDecoder(),
        MODEL,
        SchedulerLimits(**limits),
        clock=clock or Clock(),
    )


def ask(scheduler: Scheduler, inputs: ModelInputs, config=GREEDY, **options):
    """Submit a prompt; returns its ticket and the list that its events will fill."""
    heard: list[Event] = []
    return scheduler.submit(Request(inputs, config, 0), heard.append, **options), heard


def run_to_the_end(scheduler: Scheduler) -> int:
    """Steps until there is no more work; how many they were."""
    for num_steps in range(1, 1000):
        if not scheduler.step():
            return num_steps
    raise AssertionError("the scheduler does not come to an end")


def tokens(heard: list[Event]) -> list[int]:
    return [event.token_id for event in heard if isinstance(event, TokenEvent)]


def reason(heard: list[Event]) -> FinishReason | None:
    """Why it ended without a further token."""
    assert isinstance(heard[-1], FinishEvent)
    return heard[-1].finish_reason


def truth(inputs: ModelInputs, config=GREEDY) -> list[int]:
    return tokens_without_cache(inputs, config, 0)


def answered(scheduler: Scheduler, inputs: ModelInputs) -> list[int]:
    _, heard = ask(scheduler, inputs)
    run_to_the_end(scheduler)
    return tokens(heard)


# Batching


def test_requests_that_come_while_others_run_are_answered_as_they_are_alone():
    scheduler = make_scheduler(prefill_chunk_tokens=4)
    asked = []
    for seed in range(7):
        inputs = make_inputs(PICTURES if seed % 2 else [*TEXT, *range(20, 20 + seed)], seed)
        asked.append((inputs, ask(scheduler, inputs)[1]))
        scheduler.step()
    run_to_the_end(scheduler)
    for inputs, heard in asked:
        assert tokens(heard) == truth(inputs)
        assert [event.is_last for event in heard] == [False] * 7 + [True]


def test_running_answers_share_one_call_a_step():
    decoder = FakeDecoder()
    scheduler = make_scheduler(decoder)
    for seed in range(3):
        ask(scheduler, make_inputs(TEXT, seed))
    num_steps = run_to_the_end(scheduler)
    decode_calls = [
        (slot, len(call.token_ids)) for slot, call in decoder.calls if call.token_ids.shape[1] == 1
    ]
    assert decode_calls == [(0, 3)] * (GREEDY.max_new_tokens - 1)
    assert num_steps == len(decode_calls)


def test_an_answer_that_ends_makes_room_for_the_next_request_while_others_go_on():
    decoder = FakeDecoder(num_slots=2)
    scheduler = make_scheduler(decoder)
    _, short = ask(scheduler, make_inputs(TEXT, 1), GenerationConfig(max_new_tokens=2))
    _, long = ask(scheduler, make_inputs(TEXT, 2))
    _, waiting = ask(scheduler, make_inputs(TEXT, 3))
    scheduler.step()
    assert (len(short), len(long), len(waiting)) == (2, 2, 0)
    scheduler.step()
    assert (len(short), len(long), len(waiting)) == (2, 3, 2)


def test_a_long_prompt_holds_up_running_answers_by_one_chunk_a_step():
    decoder = FakeDecoder()
    scheduler = make_scheduler(decoder, prefill_chunk_tokens=6)
    _, running = ask(scheduler, make_inputs(TEXT))
    scheduler.step()
    _, long = ask(scheduler, make_inputs([*TEXT, *TEXT, *TEXT]))
    for _ in range(3):
        num_heard, num_calls = len(running), len(decoder.calls)
        scheduler.step()
        assert len(running) == num_heard + 1
        assert (
            sum(call.token_ids.shape[1] for _, call in decoder.calls[num_calls:] if len(call.token_ids) == 1)
            <= 7
        )
    assert len(long) == 2
    run_to_the_end(scheduler)
    assert tokens(long) == truth(make_inputs([*TEXT, *TEXT, *TEXT]))


def test_short_prompts_share_the_prompt_tokens_of_a_step():
    decoder = FakeDecoder()
    scheduler = make_scheduler(decoder, prefill_chunk_tokens=12)
    for seed in range(3):
        ask(scheduler, make_inputs(TEXT, seed))
    scheduler.step()
    assert [call.token_ids.shape for _, call in decoder.calls] == [(1, 5), (1, 5), (1, 2), (2, 1)]


def test_first_come_first_served():
    scheduler = make_scheduler(FakeDecoder(num_slots=1))
    order: list[int] = []
    for seed in range(5):
        scheduler.submit(
            Request(make_inputs(TEXT, seed), GREEDY), lambda event: order.append(event.request_index)
        )
    run_to_the_end(scheduler)
    assert order == sorted(order)
    assert len(order) == 5 * 8


def test_no_call_has_one_token_alone_where_that_is_asked():
    decoder = FakeDecoder()
    scheduler = make_scheduler(decoder, prefill_chunk_tokens=4, min_tokens_per_call=2)
    prompts = [make_inputs([*range(10, 10 + length)], length) for length in range(2, 12)]
    heard = [ask(scheduler, inputs)[1] for inputs in prompts]
    run_to_the_end(scheduler)
    assert min(call.token_ids.size for _, call in decoder.calls) == 2
    assert [tokens(events) for events in heard] == [truth(inputs) for inputs in prompts]


def test_sampled_answers_depend_on_their_seed_alone():
    config = GenerationConfig(do_sample=True, temperature=8.0, top_k=20, max_new_tokens=8)
    scheduler = make_scheduler(prefill_chunk_tokens=3)
    heard: list[list[Event]] = [[] for _ in range(6)]
    for seed, events in enumerate(heard):
        scheduler.submit(Request(make_inputs(TEXT), config, seed), events.append)
    run_to_the_end(scheduler)
    expected = [tokens_without_cache(make_inputs(TEXT), config, seed) for seed in range(6)]
    assert [tokens(events) for events in heard] == expected


# Pictures


def test_pictures_of_several_requests_are_packed_into_one_call():
    vision = CountingVision()
    scheduler = make_scheduler(vision=vision)
    asked = [
        (inputs, ask(scheduler, inputs)[1]) for inputs in (make_inputs(PICTURES, seed) for seed in range(3))
    ]
    run_to_the_end(scheduler)
    assert vision.call_patches == [3 * 6 * 4]
    assert all(tokens(heard) == truth(inputs) for inputs, heard in asked)


def test_a_call_takes_as_many_pictures_as_fit_and_at_least_one():
    vision = CountingVision()
    scheduler = make_scheduler(vision=vision, max_vision_patches_per_call=9)
    heard = ask(scheduler, make_conversation([IMAGE, IMAGE, IMAGE, 12], [1, 2, 3]))[1]
    run_to_the_end(scheduler)
    assert vision.call_patches == [8, 4]
    assert tokens(heard) == truth(make_conversation([IMAGE, IMAGE, IMAGE, 12], [1, 2, 3]))
    vision = CountingVision()
    scheduler = make_scheduler(vision=vision, max_vision_patches_per_call=1)
    ask(scheduler, make_conversation([IMAGE, IMAGE, 12], [1, 2]))
    run_to_the_end(scheduler)
    assert vision.call_patches == [4, 4]


def test_a_picture_that_is_shown_twice_is_encoded_once():
    vision = CountingVision()
    scheduler = make_scheduler(vision=vision)
    together = [
        make_conversation([10, IMAGE, 12], [1]),
        make_conversation([20, 21, IMAGE, 22, IMAGE], [2, 1]),
    ]
    asked = [(inputs, ask(scheduler, inputs)[1]) for inputs in together]
    run_to_the_end(scheduler)
    later = make_conversation([30, IMAGE, 31], [2])
    assert answered(scheduler, later) == truth(later)
    assert vision.call_patches == [8]
    assert scheduler.stats().num_pictures_encoded == 2
    assert all(tokens(heard) == truth(inputs) for inputs, heard in asked)


def test_without_a_budget_pictures_are_encoded_every_time():
    vision = CountingVision()
    scheduler = make_scheduler(vision=vision, embedding_cache_bytes=0, reuse_prefixes=False)
    for _ in range(2):
        answered(scheduler, make_conversation([10, IMAGE, 12], [1]))
    assert vision.call_patches == [4, 4]
    assert scheduler.stats().embedding_cache_bytes == 0


def test_patches_are_let_go_once_they_are_encoded():
    scheduler = make_scheduler(max_queue_bytes=1)
    ask(scheduler, make_inputs(PICTURES))
    with pytest.raises(QueueFullError, match="bytes of pictures"):
        ask(scheduler, make_inputs(PICTURES))
    ask(scheduler, make_inputs(TEXT))  # no picture, no bytes
    scheduler.step()
    ask(scheduler, make_inputs(PICTURES))


# Conversations that grow


def test_a_conversation_that_grows_starts_behind_what_its_slot_holds():
    vision, decoder = CountingVision(), FakeDecoder()
    scheduler = make_scheduler(decoder, vision)
    token_ids, pictures, num_before = [10, IMAGE, 12, 13], [2], 0
    for turn in range(3):
        inputs = make_conversation(token_ids, pictures)
        num_calls, num_reused = len(decoder.calls), scheduler.stats().num_reused_tokens
        answer = answered(scheduler, inputs)
        assert answer == truth(inputs)
        assert not {IMAGE, VIDEO} & set(answer), "it would show another picture when it is read again"
        if turn:
            # All but the last new token of the previous answer, which was never computed with, was there.
            assert scheduler.stats().num_reused_tokens - num_reused == num_before
            assert decoder.calls[num_calls][1].write_index.tolist() == [num_before]
        num_before = len(token_ids) + len(answer) - 1
        token_ids, pictures = [*token_ids, *answer, 20 + turn, IMAGE], [*pictures, 10 + turn]
    assert vision.call_patches == [4, 4, 4]


def test_equal_words_over_another_picture_are_no_common_beginning():
    scheduler = make_scheduler()
    first, second = (make_conversation([11, 12, IMAGE, 27], [number]) for number in (1, 2))
    assert truth(first) != truth(second)
    assert answered(scheduler, first) == truth(first)
    assert answered(scheduler, second) == truth(second)
    assert scheduler.stats().num_reused_tokens == 2


def test_the_same_prompt_again_computes_its_last_token_alone():
    decoder = FakeDecoder()
    scheduler = make_scheduler(decoder)
    inputs = make_conversation([11, IMAGE, 12, 13], [1])
    assert answered(scheduler, inputs) == answered(scheduler, inputs) == truth(inputs)
    prefills = [call.token_ids.shape[1] for _, call in decoder.calls if call.write_index[0] < 4]
    assert prefills == [4, 1]


def test_what_a_free_slot_holds_survives_the_steps_of_others():
    decoder = FakeDecoder(num_slots=3)
    scheduler = make_scheduler(decoder)
    kept = make_conversation([30, 31, 32, 33, 34, 35])
    others = [make_conversation([*range(10 + 10 * i, 16 + 10 * i)]) for i in range(2)]
    _, ended = ask(scheduler, others[0], GenerationConfig(max_new_tokens=30))
    ask(scheduler, kept, GenerationConfig(max_new_tokens=2))
    ask(scheduler, others[1], GenerationConfig(max_new_tokens=30))
    for _ in range(6):
        scheduler.step()
    assert {len(call.token_ids) for _, call in decoder.calls[-4:]} == {3}, "the free slot is in between"
    longer = make_conversation([30, 31, 32, 33, 34, 35, 36])
    _, heard = ask(scheduler, longer)
    run_to_the_end(scheduler)
    assert tokens(heard) == truth(longer)
    assert isinstance(heard[0], TokenEvent)
    assert heard[0].timings.num_reused_tokens == 6
    assert len(ended) == 30


def test_a_full_slot_is_reused_but_for_its_last_place():
    decoder = FakeDecoder(num_slots=3, capacity=8)
    scheduler = make_scheduler(decoder)
    full = make_conversation([30, 31, 32, 33, 34, 35, 36, 37])
    ask(scheduler, make_conversation([10]), GenerationConfig(max_new_tokens=7))
    ask(scheduler, full, GenerationConfig(max_new_tokens=1))
    ask(scheduler, make_conversation([20]), GenerationConfig(max_new_tokens=7))
    run_to_the_end(scheduler)
    assert answered(scheduler, full) == truth(full)[:1]
    assert scheduler.stats().num_reused_tokens == 7


def test_nothing_is_reused_where_that_is_switched_off():
    scheduler = make_scheduler(reuse_prefixes=False)
    inputs = make_conversation([11, 12, 13])
    assert answered(scheduler, inputs) == answered(scheduler, inputs) == truth(inputs)
    assert scheduler.stats().num_reused_tokens == 0


# Ends


def test_a_cancelled_answer_frees_its_slot_for_the_next_step():
    scheduler = make_scheduler(FakeDecoder(num_slots=1))
    ticket, heard = ask(scheduler, make_inputs(TEXT))
    _, waiting = ask(scheduler, make_inputs(TEXT, 1))
    scheduler.step()
    scheduler.cancel(ticket)
    scheduler.cancel(ticket)
    scheduler.step()
    assert isinstance(heard[-1], FinishEvent)
    assert heard[-1].finish_reason == "cancelled"
    assert tokens(heard) == truth(make_inputs(TEXT))[:2]
    assert len(waiting) == 2
    run_to_the_end(scheduler)
    scheduler.cancel(ticket)
    assert not scheduler.step()
    assert sum(event.is_last for event in heard) == 1
    assert tokens(waiting) == truth(make_inputs(TEXT, 1))


def test_a_waiting_or_half_read_request_can_be_cancelled():
    scheduler = make_scheduler(FakeDecoder(num_slots=1), prefill_chunk_tokens=3)
    reading, waiting = (ask(scheduler, make_inputs(PICTURES, seed)) for seed in range(2))
    scheduler.step()
    for ticket, _ in (reading, waiting):
        scheduler.cancel(ticket)
    assert not scheduler.step()
    assert [event.finish_reason for _, heard in (reading, waiting) for event in heard] == ["cancelled"] * 2
    assert (scheduler.stats().slots_used, scheduler.stats().num_cancelled) == (0, 2)
    assert answered(scheduler, make_inputs(PICTURES, 2)) == truth(make_inputs(PICTURES, 2))


def test_a_listener_may_cancel_its_own_request_and_ask_the_next():
    scheduler = make_scheduler()
    heard: list[Event] = []
    later: list[Event] = []

    def listen(event: Event) -> None:
        heard.append(event)
        if len(heard) == 3:
            scheduler.cancel(ticket)
            scheduler.submit(Request(make_inputs(TEXT, 1), GREEDY), later.append)

    ticket = scheduler.submit(Request(make_inputs(TEXT), GREEDY), listen)
    run_to_the_end(scheduler)
    assert (len(tokens(heard)), reason(heard)) == (3, "cancelled")
    assert tokens(later) == truth(make_inputs(TEXT, 1))


def test_a_listener_that_raises_gives_its_request_up_and_disturbs_no_other(caplog):
    scheduler = make_scheduler()

    def broken(event: Event) -> None:
        raise RuntimeError("the client is gone")

    scheduler.submit(Request(make_inputs(TEXT), GREEDY), broken)
    assert answered(scheduler, make_inputs(TEXT, 1)) == truth(make_inputs(TEXT, 1))
    assert (scheduler.stats().num_cancelled, scheduler.stats().slots_used) == (1, 0)
    assert "listener of request 0" in caplog.text


def test_a_deadline_ends_an_answer_waiting_or_running():
    clock = Clock()
    scheduler = make_scheduler(FakeDecoder(num_slots=1), clock=clock)
    running = ask(scheduler, make_inputs(TEXT), deadline_seconds=5)[1]
    waiting = ask(scheduler, make_inputs(TEXT), deadline_seconds=3)[1]
    patient = ask(scheduler, make_inputs(TEXT))[1]
    scheduler.step()
    clock.now += 3
    scheduler.step()
    assert (len(tokens(running)), [event.finish_reason for event in waiting]) == (3, ["deadline"])
    clock.now += 2
    run_to_the_end(scheduler)
    assert (len(tokens(running)), running[-1].finish_reason) == (3, "deadline")
    assert tokens(patient) == truth(make_inputs(TEXT))
    assert scheduler.stats().num_expired == 2


def test_end_all_ends_everything_with_what_it_is_given():
    scheduler = make_scheduler(FakeDecoder(num_slots=1))
    heard = [ask(scheduler, make_inputs(TEXT, seed))[1] for seed in range(2)]
    scheduler.step()
    scheduler.end_all(RuntimeError("out of order"))
    assert all(isinstance(events[-1], FailureEvent) for events in heard)
    assert not scheduler.step()
    later = ask(scheduler, make_inputs(TEXT))[1]
    scheduler.end_all()
    assert later[-1].finish_reason == "cancelled"
    assert scheduler.stats().slots_used == 0


# What is refused


def test_all_problems_of_a_request_are_told_at_once_and_nothing_is_queued():
    scheduler = make_scheduler(FakeDecoder(capacity=16), max_tokens_per_request=7, max_patches_per_picture=3)
    with pytest.raises(UserError) as caught:
        ask(scheduler, make_inputs(PICTURES), deadline_seconds=float("nan"))
    lines = str(caught.value).splitlines()
    assert [" ".join(line.split(" ")[:4]) for line in lines] == [
        "the prompt has 17",
        "max_new_tokens is 8, this",
        "a picture has 4",
        "deadline_seconds must be more",
    ]
    assert not scheduler.has_work


def test_a_full_queue_says_try_later_and_takes_the_request_later():
    scheduler = make_scheduler(FakeDecoder(num_slots=1), max_queue=2)
    ask(scheduler, make_inputs(TEXT))
    scheduler.step()
    for _ in range(2):
        ask(scheduler, make_inputs(TEXT))
    with pytest.raises(QueueFullError, match=r"2 requests .* at most 2 .*Try again later"):
        ask(scheduler, make_inputs(TEXT))
    assert (scheduler.stats().queue_length, scheduler.stats().num_refused) == (2, 1)
    run_to_the_end(scheduler)
    assert answered(scheduler, make_inputs(TEXT)) == truth(make_inputs(TEXT))


def test_a_draining_scheduler_finishes_what_it_has_and_takes_nothing_new():
    scheduler = make_scheduler(FakeDecoder(num_slots=1))
    heard = [ask(scheduler, make_inputs(TEXT, seed))[1] for seed in range(2)]
    scheduler.drain()
    with pytest.raises(DrainingError, match="shutting down"):
        ask(scheduler, make_inputs(TEXT))
    run_to_the_end(scheduler)
    assert [tokens(events) for events in heard] == [truth(make_inputs(TEXT, seed)) for seed in range(2)]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"max_queue": 0, "prefill_chunk_tokens": -1},
            "max_queue must be at least 1.*\nprefill_chunk_tokens must",
        ),
        ({"prefill_chunk_tokens": 2, "min_tokens_per_call": 2}, "prefill_chunk_tokens must be at least 3"),
        ({"embedding_cache_bytes": -1}, "embedding_cache_bytes must be at least 0, found -1"),
    ],
)
def test_limits_out_of_range_are_refused(limits, message):
    with pytest.raises(UserError, match=message):
        SchedulerLimits(**limits)


# Failing engines


def test_a_picture_on_which_the_engine_fails_ends_the_requests_that_show_it():
    vision = CountingVision()
    scheduler = make_scheduler(vision=vision)
    good, bad = (make_conversation([10, IMAGE, 11], [number]) for number in (1, 2))
    vision.blind_to = {float(bad.patches[0, 0])}
    asked = [ask(scheduler, inputs)[1] for inputs in (good, bad, bad)]
    run_to_the_end(scheduler)
    assert tokens(asked[0]) == truth(good)
    for heard in asked[1:]:
        assert isinstance(heard[0], FailureEvent)
        assert str(heard[0].error) == "no memory for these patches"
        assert len(heard) == 1
    assert vision.call_patches == [8, 4, 4]
    assert (scheduler.stats().num_failed, scheduler.stats().slots_used) == (2, 0)


class FailingDecoder(FakeDecoder):
    """Raises whenever a call holds this token."""

    poison = 60

    def forward(self, first_slot, inputs):
        if (inputs.token_ids == self.poison).any():
            raise RuntimeError("device-side assert")
        return super().forward(first_slot, inputs)


def test_a_prompt_on_which_the_decoder_fails_ends_alone():
    scheduler = make_scheduler(FailingDecoder())
    inputs = make_inputs(TEXT)
    assert 60 not in truth(inputs)
    bad, good = ask(scheduler, make_inputs([11, 60, 12]))[1], ask(scheduler, inputs)[1]
    run_to_the_end(scheduler)
    assert [type(event) for event in bad] == [FailureEvent]
    assert tokens(good) == truth(inputs)


def test_a_failing_decode_call_ends_only_the_answer_that_makes_it_fail():
    decoder = FailingDecoder()
    scheduler = make_scheduler(decoder)
    prompts = [make_inputs(TEXT, seed) for seed in (1, 2, 3)]
    truths = [truth(inputs) for inputs in prompts]
    # The first token that only the second answer takes, in its fourth step.
    decoder.poison = truths[1][3]
    assert decoder.poison not in truths[1][:3] + truths[0] + truths[2] + TEXT
    heard = [ask(scheduler, inputs)[1] for inputs in prompts]
    run_to_the_end(scheduler)
    assert tokens(heard[0]) == truths[0]
    assert tokens(heard[1]) == truths[1][:4]
    assert isinstance(heard[1][-1], FailureEvent)
    assert tokens(heard[2]) == truths[2]


def test_logits_that_are_no_numbers_end_the_answer_of_their_row_and_its_slot_keeps_nothing():
    class Broken(FakeDecoder):
        def forward(self, first_slot, inputs):
            logits = super().forward(first_slot, inputs)
            if len(logits) > 1:
                logits[1] = np.nan
            return logits

    scheduler = make_scheduler(Broken())
    heard = [ask(scheduler, make_conversation([10 + seed, 12]))[1] for seed in range(3)]
    run_to_the_end(scheduler)
    assert isinstance(heard[1][-1], FailureEvent)
    assert f"{VOCAB} are not a number" in str(heard[1][-1].error)
    for seed in (0, 2):
        assert tokens(heard[seed]) == truth(make_conversation([10 + seed, 12]))
    reused = scheduler.stats().num_reused_tokens
    assert answered(scheduler, make_conversation([11, 12, 13])) == truth(make_conversation([11, 12, 13]))
    assert scheduler.stats().num_reused_tokens == reused


# Figures


def test_stats_count_what_was_done():
    clock = Clock()
    scheduler = make_scheduler(FakeDecoder(num_slots=1), clock=clock)
    ask(scheduler, make_inputs(PICTURES))
    ask(scheduler, make_inputs(TEXT))
    clock.now += 2
    scheduler.step()
    stats = scheduler.stats()
    assert (stats.queue_length, stats.slots_used, stats.num_slots) == (1, 1, 1)
    assert (stats.queue_seconds, stats.first_token_seconds) == (2, 2)
    run_to_the_end(scheduler)
    stats = scheduler.stats()
    assert (stats.num_submitted, stats.num_admitted, stats.num_finished, stats.num_first_tokens) == (
        2,
        2,
        2,
        2,
    )
    assert (stats.num_prompt_tokens, stats.num_new_tokens) == (len(PICTURES) + len(TEXT), 16)
    assert (stats.num_pictures_encoded, stats.num_vision_calls, stats.num_prefill_calls) == (6, 1, 2)
    assert (stats.num_decode_calls, stats.num_decode_rows) == (14, 14)
    assert stats.queue_seconds == 4
    assert stats.embedding_cache_bytes == 6 * 12 * 4


def test_an_answers_timings_tell_its_queue_and_its_reuse():
    clock = Clock()
    scheduler = make_scheduler(clock=clock)
    answered(scheduler, make_conversation([11, 12, 13]))
    _, heard = ask(scheduler, make_conversation([11, 12, 13, 14]))
    clock.now += 1.5
    run_to_the_end(scheduler)
    last = heard[-1].timings
    assert (last.num_prompt_tokens, last.num_new_tokens, last.num_reused_tokens) == (4, 8, 3)
    assert last.queue_seconds == 1.5
    assert last.prefill_seconds > 0
    assert last.decode_seconds > 0


def pictures_of(num_tokens, seed):
    return make_inputs([11, *[IMAGE] * num_tokens, 12], seed)


def test_a_question_without_a_picture_waits_for_one_vision_call_of_others_and_not_for_two():
    vision = FakeVision()
    scheduler = make_scheduler(FakeDecoder(num_slots=4), vision, max_vision_patches_per_call=8)
    for seed in range(3):
        ask(scheduler, pictures_of(2, seed))
    scheduler.step()
    assert vision.num_calls == 1
    _, heard = ask(scheduler, make_inputs(TEXT))
    scheduler.step()
    assert heard
    assert vision.num_calls == 1
    scheduler.step()
    assert vision.num_calls == 2  # questions that keep coming do not keep pictures waiting


def test_the_shortest_picture_is_encoded_first_until_the_patience_with_it_ends():
    clock = Clock()
    heards = {}
    for patience in (2.0, 0.0):
        scheduler = make_scheduler(
            FakeDecoder(num_slots=4), clock=clock, max_vision_patches_per_call=20, patience_seconds=patience
        )
        heards[patience] = [ask(scheduler, pictures_of(length, length))[1] for length in (5, 4, 2)]
        scheduler.step()
    assert [bool(heard) for heard in heards[2.0]] == [False, False, True]
    assert [bool(heard) for heard in heards[0.0]] == [True, False, False]
