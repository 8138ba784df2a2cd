from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.runtime.answer import Request, TokenEvent
from engines.runtime.generate import collect_generations, generate, generate_batch
from engines.session import EngineError
from export.checkpoint.generation_config import GenerationConfig
from export.errors import UserError
from export.inputs import ModelInputs
from tests.engines.runtime.fake_engine import (
    HIDDEN,
    IMAGE,
    MODEL,
    VIDEO,
    VOCAB,
    FakeDecoder,
    FakeVision,
    make_inputs,
    tokens_without_cache,
)

GREEDY = GenerationConfig(max_new_tokens=8)
SAMPLED = GenerationConfig(
    do_sample=True, temperature=8.0, top_k=20, top_p=0.95, repetition_penalty=1.2, max_new_tokens=8
)
TEXT = [11, 12, 13, 14, 15]
PICTURES = [11, 5, IMAGE, IMAGE, IMAGE, 6, 12, 5, VIDEO, VIDEO, 6, 13, 14, 5, IMAGE, 6, 15]

text_token = st.sampled_from([*range(10, VOCAB)])
prompts = st.lists(text_token | st.sampled_from([IMAGE, VIDEO]), min_size=1, max_size=24)
configs = st.sampled_from([GREEDY, SAMPLED])


def answer(inputs: ModelInputs, config: GenerationConfig = GREEDY, decoder=None, vision=None, **options):
    events = generate(
        inputs, vision or FakeVision(), decoder or FakeDecoder(), config, model=MODEL, **options
    )
    return collect_generations(events)[0]


@pytest.mark.parametrize("config", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("token_ids", [TEXT, PICTURES], ids=["text", "pictures"])
def test_tokens_equal_a_computation_without_cache_for_every_chunk_size(token_ids, config):
    inputs = make_inputs(token_ids)
    truth = tokens_without_cache(inputs, config, seed=3)
    assert len(set(truth)) > 3, "a constant answer would prove nothing"
    for chunk in [None, *range(1, len(token_ids) + 2)]:
        assert answer(inputs, config, seed=3, prefill_chunk_tokens=chunk).token_ids == truth, chunk


@settings(max_examples=25)
@given(token_ids=prompts, chunk=st.integers(1, 25), config=configs, seed=st.integers(0, 2**31))
def test_chunked_prefill_equals_a_computation_without_cache_on_any_prompt(token_ids, chunk, config, seed):
    inputs = make_inputs(token_ids, seed)
    generation = answer(inputs, config, seed=seed, prefill_chunk_tokens=chunk)
    assert generation.token_ids == tokens_without_cache(inputs, config, seed)


@settings(max_examples=25)
@given(
    batch=st.lists(
        st.tuples(prompts, configs, st.integers(0, 2**31), st.integers(1, 9)), min_size=1, max_size=4
    ),
    chunk=st.none() | st.integers(1, 25),
)
def test_each_prompt_of_a_batch_is_answered_as_it_is_alone(batch, chunk):
    requests = [
        Request(
            make_inputs(token_ids, seed), GenerationConfig(**{**vars(config), "max_new_tokens": length}), seed
        )
        for token_ids, config, seed, length in batch
    ]
    events = generate_batch(requests, FakeVision(), FakeDecoder(), model=MODEL, prefill_chunk_tokens=chunk)
    for request, generation in zip(requests, collect_generations(events), strict=True):
        assert generation.token_ids == tokens_without_cache(request.inputs, request.config, request.seed or 0)
        assert generation.finish_reason == "length"
        assert generation.timings.num_prompt_tokens == request.num_prompt_tokens


def test_prefill_of_a_batch_is_one_ragged_call_and_decode_one_call_a_step():
    decoder = FakeDecoder()
    requests = [Request(make_inputs(token_ids), GREEDY) for token_ids in (TEXT, PICTURES, [11])]
    collect_generations(generate_batch(requests, FakeVision(), decoder, model=MODEL))
    shapes = [inputs.token_ids.shape for _, inputs in decoder.calls]
    assert shapes == [(3, len(PICTURES))] + [(3, 1)] * (GREEDY.max_new_tokens - 1)
    assert sorted(decoder.calls[0][1].kv_lengths) == [1, len(TEXT), len(PICTURES)]


def test_finished_answers_at_the_ends_of_a_batch_leave_the_call():
    lengths = [2, 5, 1]
    requests = [
        Request(make_inputs(TEXT, seed), GenerationConfig(max_new_tokens=n)) for seed, n in enumerate(lengths)
    ]
    decoder = FakeDecoder()
    collect_generations(generate_batch(requests, FakeVision(), decoder, model=MODEL))
    assert [(slot, len(inputs.token_ids)) for slot, inputs in decoder.calls] == [
        (0, 3),
        (0, 2),
        (1, 1),
        (1, 1),
        (1, 1),
    ]


def test_chunks_of_a_short_prompt_between_long_ones_go_to_the_right_slots():
    requests = [
        Request(make_inputs(ids, seed), GREEDY) for seed, ids in enumerate([PICTURES, TEXT, [*TEXT, *TEXT]])
    ]
    events = generate_batch(requests, FakeVision(), FakeDecoder(), model=MODEL, prefill_chunk_tokens=4)
    for request, generation in zip(requests, collect_generations(events), strict=True):
        assert generation.token_ids == tokens_without_cache(request.inputs, GREEDY, 0)


def test_answers_of_a_batch_end_for_their_own_reasons():
    token_ids = [[*TEXT, *TEXT], [*TEXT, 16, 17], TEXT]
    requests = [
        Request(make_inputs(ids), GenerationConfig(max_new_tokens=n))
        for ids, n in zip(token_ids, (3, 1, 6), strict=True)
    ]
    decoder = FakeDecoder(capacity=10)
    generations = collect_generations(generate_batch(requests, FakeVision(), decoder, model=MODEL))
    assert [generation.finish_reason for generation in generations] == ["capacity", "length", "length"]
    for request, generation in zip(requests, generations, strict=True):
        truth = tokens_without_cache(request.inputs, request.config, seed=0)
        assert generation.token_ids == truth[: len(generation.token_ids)]


def test_events_of_a_batch_come_in_the_order_of_the_requests_step_by_step():
    requests = [
        Request(make_inputs(token_ids), GenerationConfig(max_new_tokens=2)) for token_ids in ([11], TEXT)
    ]
    events = list(generate_batch(requests, FakeVision(), FakeDecoder(), model=MODEL))
    assert [event.request_index for event in events] == [0, 1, 0, 1]


def test_decode_positions_are_cache_length_plus_delta_on_all_axes():
    inputs, decoder = make_inputs(PICTURES), FakeDecoder()
    answer(inputs, decoder=decoder)
    decode_calls = [call for _, call in decoder.calls[1:]]
    expected = np.arange(len(decode_calls)) + len(PICTURES) + inputs.position_delta
    for axis in range(3):
        assert [int(call.position_ids[axis, 0, 0]) for call in decode_calls] == expected.tolist()
    assert expected[0] == inputs.position_ids.max() + 1


def test_prefill_projects_only_each_chunks_last_token():
    decoder = FakeDecoder()
    answer(make_inputs(PICTURES), decoder=decoder, prefill_chunk_tokens=5)
    prefill_calls = decoder.calls[:4]
    assert [call.logits_index.tolist() for _, call in prefill_calls] == [[[4]], [[4]], [[4]], [[1]]]


def test_chunks_get_views_of_the_visual_embeddings():
    vision, decoder = FakeVision(), FakeDecoder()
    answer(make_inputs(PICTURES), decoder=decoder, vision=vision, prefill_chunk_tokens=4)
    chunks = [call.visual_embeds for _, call in decoder.calls]
    assert [len(chunk) for chunk in chunks[:5]] == [2, 1, 2, 1, 0]
    assert all(np.shares_memory(chunk, vision.embeds) for chunk in chunks if len(chunk))


def test_vision_runs_once_with_pictures_and_never_without():
    with_pictures, without = FakeVision(), FakeVision()
    answer(make_inputs(PICTURES), vision=with_pictures, prefill_chunk_tokens=3)
    answer(make_inputs(TEXT), vision=without)
    assert (with_pictures.num_calls, without.num_calls) == (1, 0)


def test_an_end_of_sequence_token_is_given_out_and_ends_the_answer():
    inputs = make_inputs(TEXT)
    free = answer(inputs).token_ids
    eos = free[3]
    generation = answer(inputs, GenerationConfig(max_new_tokens=8, eos_token_ids=(VOCAB + 1, eos)))
    assert generation.token_ids == free[: free.index(eos) + 1]
    assert generation.finish_reason == "stop"


def test_an_end_of_sequence_token_in_the_last_place_counts_as_stop():
    inputs = make_inputs(TEXT)
    first = answer(inputs).token_ids[0]
    generation = answer(inputs, GenerationConfig(max_new_tokens=1, eos_token_ids=(first,)))
    assert generation.finish_reason == "stop"


def test_an_answer_ends_at_max_new_tokens():
    generation = answer(make_inputs(TEXT), GenerationConfig(max_new_tokens=3))
    assert (len(generation.token_ids), generation.finish_reason) == (3, "length")


@pytest.mark.parametrize(("capacity", "num_tokens"), [(len(TEXT), 1), (len(TEXT) + 2, 3)])
def test_an_answer_ends_when_its_slot_is_full(capacity, num_tokens):
    inputs = make_inputs(TEXT)
    generation = answer(inputs, decoder=FakeDecoder(capacity=capacity))
    assert generation.finish_reason == "capacity"
    assert generation.token_ids == tokens_without_cache(inputs, GREEDY, 0)[:num_tokens]


def test_only_the_chosen_slot_is_written():
    decoder = FakeDecoder(num_slots=3)
    answer(make_inputs(TEXT), decoder=decoder, slot=1)
    written = ~np.isnan(decoder.keys).all(axis=(1, 2))
    assert written.tolist() == [False, True, False]


def test_what_an_earlier_answer_left_in_the_slot_does_not_show():
    decoder = FakeDecoder()
    answer(make_inputs([*PICTURES, *PICTURES]), decoder=decoder)
    assert answer(make_inputs(TEXT), decoder=decoder).token_ids == tokens_without_cache(
        make_inputs(TEXT), GREEDY, 0
    )


def test_a_seed_repeats_an_answer_and_another_seed_changes_it():
    config = GenerationConfig(do_sample=True, temperature=30.0, top_k=0, max_new_tokens=20)
    inputs = make_inputs(TEXT)
    assert answer(inputs, config, seed=5).token_ids == answer(inputs, config, seed=5).token_ids
    assert len({tuple(answer(inputs, config, seed=seed).token_ids) for seed in range(5)}) == 5
    assert answer(inputs, config).token_ids != answer(inputs, config).token_ids


def test_timings_count_tokens_and_grow_phase_by_phase():
    events = list(
        generate(
            make_inputs(PICTURES), FakeVision(), FakeDecoder(), GREEDY, model=MODEL, prefill_chunk_tokens=4
        )
    )
    first, last = events[0].timings, events[-1].timings
    assert (last.num_prompt_tokens, last.num_visual_tokens, last.num_new_tokens) == (len(PICTURES), 6, 8)
    assert first.vision_seconds > 0
    assert first.prefill_seconds > 0
    assert first.decode_seconds == first.decode_tokens_per_second == 0
    assert all(
        later.timings.decode_seconds > sooner.timings.decode_seconds for sooner, later in pairwise(events)
    )
    assert last.decode_tokens_per_second == pytest.approx(7 / last.decode_seconds)


def test_a_caller_may_stop_listening_and_nothing_more_is_computed():
    decoder = FakeDecoder()
    events = generate(make_inputs(TEXT), FakeVision(), decoder, GREEDY, model=MODEL)
    assert isinstance(next(events), TokenEvent)
    assert len(decoder.calls) == 1


def test_a_prompt_longer_than_the_context_is_refused_before_any_work():
    vision, decoder = FakeVision(), FakeDecoder(capacity=16)
    with pytest.raises(UserError, match=r"17 tokens but the context holds 16"):
        generate(make_inputs(PICTURES), vision, decoder, GREEDY, model=MODEL)
    assert (vision.num_calls, decoder.calls) == (0, [])


def test_all_problems_of_a_batch_are_told_at_once():
    requests = [Request(make_inputs(ids), GREEDY) for ids in ([], [11] * 65, [VOCAB], [-1], TEXT)]
    with pytest.raises(UserError) as caught:
        generate_batch(requests, FakeVision(), FakeDecoder(), model=MODEL, prefill_chunk_tokens=0)
    lines = str(caught.value).splitlines()
    assert [line.split(" ")[:2] for line in lines] == [
        ["5", "prompts"],
        ["prefill_chunk_tokens", "must"],
        ["prompt", "0:"],
        ["prompt", "1:"],
        ["prompt", "2:"],
        ["prompt", "3:"],
    ]


@pytest.mark.parametrize("slot", [-1, 4])
def test_a_slot_that_the_engine_lacks_is_refused(slot):
    with pytest.raises(UserError, match="it has 4"):
        generate(make_inputs(TEXT), FakeVision(), FakeDecoder(), GREEDY, model=MODEL, slot=slot)


@pytest.mark.parametrize("token_ids", [[11, IMAGE, IMAGE, 12], [11, 12]])
def test_placeholders_without_pictures_and_pictures_without_placeholders_are_refused(token_ids):
    one_picture = make_inputs([11, IMAGE, 12])
    inputs = ModelInputs(**{**vars(one_picture), "token_ids": np.array(token_ids, np.int64)})
    with pytest.raises(UserError, match=r"image and video tokens but its pictures make 1"):
        generate(inputs, FakeVision(), FakeDecoder(), GREEDY, model=MODEL)


@pytest.mark.parametrize("seed", [-1, 1.5])
def test_a_seed_that_is_no_whole_number_from_zero_is_refused(seed):
    with pytest.raises(UserError, match=f"seed .* found {seed}"):
        generate(make_inputs(TEXT), FakeVision(), FakeDecoder(), GREEDY, model=MODEL, seed=seed)


def test_a_vision_engine_that_returns_too_few_rows_is_called_faulty():
    class Broken(FakeVision):
        def encode(self, inputs):
            return super().encode(inputs)[:-1]

    with pytest.raises(EngineError, match=rf"shape \(5, {HIDDEN}\), expected \(6, {HIDDEN}\)"):
        answer(make_inputs(PICTURES), vision=Broken())


def test_logits_that_are_not_a_number_are_called_faulty():
    class Broken(FakeDecoder):
        def forward(self, first_slot, inputs):
            return np.full((1, 1, VOCAB), np.nan, np.float32)

    with pytest.raises(EngineError, match=f"{VOCAB} are not a number"):
        answer(make_inputs(TEXT), decoder=Broken())
