"""ONNX Runtime against the reference in float32, on exported bundles of every dtype and way to hold weights."""

from dataclasses import replace

import numpy as np
import pytest

from engines.backends.onnxruntime.session import split_rows
from export.checkpoint.config import load_config
from export.inputs import DecoderInputs
from tests.support.cases import CASES, Batch, Image, Part, Video, decode_step, make_batch, make_prompt
from tests.support.sessions import encode, greedy_tokens, relative_error
from validate.reference.sessions import ReferenceDecoder, ReferenceVision

ROUNDING = 1e-5
"""Of the largest value, on equal inputs. Measured: 3e-6, since float32 sums run in another order."""
ROUNDING_TWICE = 5e-5
"""Of the largest value, when the vision encoder's rounding went through the decoder too. Measured: 9e-6."""
NUM_STEPS = 32
CASE = {case.name: case for case in CASES}

by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def width_of(engine) -> int:
    return engine.reference.config.decoder.hidden_size


def reference_decoder(engine, num_slots: int = 1) -> ReferenceDecoder:
    return ReferenceDecoder(engine.reference, num_slots, engine.decoder.capacity)


def caches_of(decoder):
    (whole,) = decoder._stages
    return whole._caches


def stale(decoder) -> None:
    """Leave in every slot what an earlier conversation would: nothing may depend on it."""
    for cache in caches_of(decoder).values():
        cache[...] = np.random.default_rng(7).standard_normal(cache.shape) * 50


@by_case
def test_visual_embeds_logits_and_greedy_tokens_equal_the_reference(engine, case):
    batch = make_batch(case, engine.reference.config)
    embeds = encode(engine.vision, batch, width_of(engine))
    expected_embeds = encode(ReferenceVision(engine.reference), batch, width_of(engine))
    assert relative_error(embeds, expected_embeds) < ROUNDING

    reference = reference_decoder(engine, len(batch.prompts))
    expected = batch.valid(reference.forward(0, batch.prefill(expected_embeds)))
    stale(engine.decoder)
    for rows, tolerance in ((expected_embeds, ROUNDING), (embeds, ROUNDING_TWICE)):
        logits = batch.valid(engine.decoder.forward(1, batch.prefill(rows)))
        assert relative_error(logits, expected) < tolerance

    tokens = greedy_tokens(engine.decoder, batch, embeds, NUM_STEPS, slot=1)
    assert tokens.tolist() == greedy_tokens(reference, batch, expected_embeds, NUM_STEPS).tolist()


@pytest.mark.parametrize("chunk", [1, 7, 50, 80])
def test_decode_and_chunked_prefill_equal_one_prefill(engine, chunk):
    batch = make_batch(CASE["image_and_video"], engine.reference.config)
    embeds = encode(engine.vision, batch, width_of(engine))
    whole = engine.decoder.forward(0, batch.prefill(embeds))
    stale(engine.decoder)
    pieces = [engine.decoder.forward(2, inputs) for inputs in batch.chunks(embeds, chunk)]
    assert relative_error(np.concatenate(pieces, axis=1), whole) < ROUNDING


def test_the_last_token_alone_gets_the_same_logits(copied):
    batch = make_batch(CASE["ragged_batch"], copied.reference.config)
    embeds = encode(copied.vision, batch, width_of(copied))
    inputs = batch.prefill(embeds)
    every = copied.decoder.forward(0, inputs)
    last = copied.decoder.forward(0, replace(inputs, logits_index=batch.lengths[:, None] - 1))
    rows = np.arange(len(batch.prompts))
    assert relative_error(last[:, 0], every[rows, batch.lengths - 1]) < ROUNDING


# Batches and slots


def test_a_ragged_batch_equals_each_prompt_alone(engine):
    batch = make_batch(CASE["ragged_batch"], engine.reference.config)
    together = greedy_tokens(engine.decoder, batch, encode(engine.vision, batch, width_of(engine)), 8)
    for row, prompt in enumerate(batch.prompts):
        alone = Batch([prompt])
        embeds = encode(engine.vision, alone, width_of(engine))
        assert greedy_tokens(engine.decoder, alone, embeds, 8, slot=4).tolist() == [together[row].tolist()]


def test_a_ragged_chunk_after_a_filled_cache_equals_the_reference(engine):
    batch = make_batch(CASE["ragged_batch"], engine.reference.config)
    embeds = encode(engine.vision, batch, width_of(engine))
    reference = reference_decoder(engine, len(batch.prompts))
    stops = [np.array([3, 7, 5, 2]), np.array([4, 19, 7, 30]), batch.lengths]
    starts = np.zeros(4, np.int64)
    for stop in stops:
        inputs = batch.piece(embeds, starts, stop)
        expected, logits = reference.forward(0, inputs), engine.decoder.forward(0, inputs)
        piece_lengths = stop - starts
        for row, length in enumerate(piece_lengths):
            assert relative_error(logits[row, :length], expected[row, :length]) < ROUNDING
        starts = stop


def test_slots_do_not_disturb_each_other(copied):
    config = copied.reference.config
    decoder = copied.decoder
    first = make_batch(CASE["one_image"], config)
    second = Batch([make_prompt((9, Video(2, 4, 4), 40), config, "other slot")])
    first_embeds, second_embeds = (
        encode(copied.vision, batch, width_of(copied)) for batch in (first, second)
    )
    undisturbed = greedy_tokens(decoder, first, first_embeds, 6, slot=1)

    stale(decoder)
    tokens = [decoder.forward(1, first.prefill(first_embeds))[0, -1].argmax()]
    for step in range(5):
        kept = {key: cache[[0, 1, 3, 4]].copy() for key, cache in caches_of(decoder).items()}
        # Slot 2 is filled anew and stepped between any two steps of slot 1.
        greedy_tokens(decoder, second, second_embeds, 2, slot=2)
        assert all(
            np.array_equal(caches_of(decoder)[key][[0, 1, 3, 4]], value) for key, value in kept.items()
        )
        write_index = first.lengths + step
        inputs = decode_step(np.array([tokens[-1]]), write_index, first.deltas, width_of(copied))
        tokens.append(decoder.forward(1, inputs)[0, 0].argmax())
    assert [tokens] == undisturbed.tolist()


def test_decode_writes_one_cache_position_and_no_other(copied):
    batch = make_batch(CASE["text"], copied.reference.config)
    decoder = copied.decoder
    decoder.forward(0, batch.prefill(np.zeros((0, width_of(copied)), np.float32)))
    before = {key: cache.copy() for key, cache in caches_of(decoder).items()}
    decoder.forward(0, decode_step(np.array([5]), batch.lengths, batch.deltas, width_of(copied)))
    for key, cache in caches_of(decoder).items():
        changed = (cache != before[key]).any(axis=(1, 3))  # [slots, capacity]
        assert np.argwhere(changed).tolist() == [[0, int(batch.lengths[0])]]


def test_slots_and_positions_that_do_not_exist_are_refused(copied):
    batch = make_batch(CASE["ragged_batch"], copied.reference.config)
    inputs = batch.prefill(encode(copied.vision, batch, width_of(copied)))
    for first_slot in (-1, copied.decoder.num_slots - 3):
        with pytest.raises(ValueError, match="slots"):
            copied.decoder.forward(first_slot, inputs)
    step = decode_step(np.array([5]), np.array([copied.decoder.capacity]), np.array([0]), width_of(copied))
    with pytest.raises(ValueError, match=f"positions up to {copied.decoder.capacity + 1} asked"):
        copied.decoder.forward(0, step)


# Visual pads


def test_a_pad_without_a_visual_row_is_a_plain_token(engine):
    config = engine.reference.config
    batch = make_batch(CASE["image_and_video"], config)
    no_rows = np.zeros((0, width_of(engine)), np.float32)
    inputs = replace(batch.prefill(no_rows), visual_embeds=no_rows)
    expected = reference_decoder(engine).forward(0, inputs)
    assert relative_error(engine.decoder.forward(0, inputs), expected) < ROUNDING

    # The model writes a pad itself, in decode.
    for token in (config.image_token_id, config.video_token_id):
        step = decode_step(np.array([token]), batch.lengths, batch.deltas, width_of(engine))
        reference = reference_decoder(engine)
        reference.forward(0, inputs)
        assert relative_error(engine.decoder.forward(0, step), reference.forward(0, step)) < ROUNDING


def test_rows_that_are_too_few_go_to_the_first_pads(copied):
    batch = make_batch(CASE["three_images"], copied.reference.config)
    few = encode(copied.vision, batch, width_of(copied))[:7]
    inputs = replace(batch.prefill(few), visual_embeds=few)
    expected = reference_decoder(copied).forward(0, inputs)
    assert relative_error(copied.decoder.forward(0, inputs), expected) < ROUNDING


# split_rows


def test_split_rows_gives_each_row_its_own_tokens_and_visual_rows():
    image, video, rows = 90, 91, np.arange(8, dtype=np.float32)[:, None]
    inputs = DecoderInputs(
        token_ids=np.array([[1, image, image, 0, 0], [video, 2, 3, image, 4], [5, 6, 0, 0, 0]]),
        visual_embeds=rows[:4],
        position_ids=np.arange(45, dtype=np.int32).reshape(3, 3, 5),
        write_index=np.array([4, 0, 9]),
        kv_lengths=np.array([7, 5, 11]),
        logits_index=np.array([[0, 4], [1, 4], [1, 2]]),
    )
    first, second, third = split_rows(inputs, (image, video))
    assert [row.token_ids.tolist() for row in (first, second, third)] == [
        [[1, image, image]],
        [[video, 2, 3, image, 4]],
        [[5, 6]],
    ]
    assert [row.visual_embeds[:, 0].tolist() for row in (first, second, third)] == [[0, 1], [2, 3], []]
    assert first.position_ids.tolist() == inputs.position_ids[:, :1, :3].tolist()
    assert [row.write_index.tolist() for row in (first, second, third)] == [[4], [0], [9]]
    assert [row.kv_lengths.tolist() for row in (first, second, third)] == [[7], [5], [11]]
    # What is asked for padding is answered by the last valid token.
    assert [row.logits_index.tolist() for row in (first, second, third)] == [[[0, 2]], [[1, 4]], [[1, 1]]]


# Packing


def test_packing_pictures_changes_none_of_them(engine):
    config = load_config(engine.bundle)
    parts: tuple[Part, ...] = (Image(4, 6), Image(2, 30), Video(2, 8, 4), Image(2, 2))
    prompts = [make_prompt((part,), config, f"picture {i}") for i, part in enumerate(parts)]
    packed = encode(engine.vision, Batch(prompts), width_of(engine))
    alone = [encode(engine.vision, Batch([prompt]), width_of(engine)) for prompt in prompts]
    assert relative_error(packed, np.concatenate(alone)) < ROUNDING
    backwards = encode(engine.vision, Batch(prompts[::-1]), width_of(engine))
    assert relative_error(backwards, np.concatenate(alone[::-1])) < ROUNDING
