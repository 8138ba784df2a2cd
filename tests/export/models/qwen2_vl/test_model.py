"""Reference against Transformers 5.23, float32, on eight random models of the family."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from export.inputs import VisionInputs
from tests.support import peers
from tests.support.cases import CASES, Batch, make_batch
from tests.support.sessions import encode, greedy_tokens, relative_error
from validate.reference.sessions import ReferenceDecoder, ReferenceVision

ROUNDING = 1e-5
"""Of the largest value, on equal inputs. Measured: 3e-6, since float32 sums run in another order."""
ROUNDING_TWICE = 5e-5
"""Of the largest value, when the vision encoder's rounding went through the decoder too. Measured: 9e-6."""
NUM_STEPS = 32

by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
with_pictures = pytest.mark.parametrize("case", CASES[1:], ids=lambda case: case.name)
CASE = {case.name: case for case in CASES}


def visual_embeds(model: Any, batch: Batch) -> np.ndarray:
    return encode(ReferenceVision(model), batch, model.config.decoder.hidden_size)


def prefill(model: Any, batch: Batch, embeds: np.ndarray) -> np.ndarray:
    """Logits of every token that is not padding: [T, vocab]."""
    decoder = ReferenceDecoder(model, len(batch.prompts), int(batch.lengths.max()))
    return batch.valid(decoder.forward(0, batch.prefill(embeds)))


def hidden_states(model: Any, batch: Batch, embeds: np.ndarray) -> list[np.ndarray]:
    """Embeddings, the output of each layer but the last, and the last one's after the final norm: [T, C] each."""
    inputs = batch.prefill(embeds)
    cache = model.new_cache(len(batch.prompts), inputs.token_ids.shape[1])
    states: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda layer, arguments, outputs: states.append(outputs[0]))
        for layer in model.model.layers
    ]
    tokens, rows, position_ids, write_index, kv_lengths, _ = map(torch.from_numpy, vars(inputs).values())
    x = model.embed(tokens, rows)
    model.model(x, position_ids, write_index, kv_lengths, *cache)
    for hook in hooks:
        hook.remove()
    return [batch.valid(state.numpy()) for state in (x, *states[:-1], model.model.norm(states[-1]))]


@with_pictures
def test_visual_embeds_equal_transformers(pair, case):
    batch = make_batch(case, pair.reference.config)
    embeds = visual_embeds(pair.reference, batch)
    assert len(embeds) == sum(prompt.num_visual_tokens for prompt in batch.prompts)
    assert relative_error(embeds, peers.visual_embeds(pair.peer, batch)) < ROUNDING


@by_case
def test_hidden_states_and_logits_equal_transformers(pair, case):
    batch = make_batch(case, pair.reference.config)
    embeds = visual_embeds(pair.reference, batch)
    peer_embeds = peers.visual_embeds(pair.peer, batch) if batch.grids else embeds
    expected = pair.peer(
        **peers.forward_inputs(batch), position_ids=peers.position_ids(batch), output_hidden_states=True
    )
    expected_states = [batch.valid(peers.right_padded(batch, state)) for state in expected.hidden_states]
    expected_logits = batch.valid(peers.right_padded(batch, expected.logits))
    for rows, tolerance in ((peer_embeds, ROUNDING), (embeds, ROUNDING_TWICE)):
        states = hidden_states(pair.reference, batch, rows)
        for state, expected_state in zip(states, expected_states, strict=True):
            assert relative_error(state, expected_state) < tolerance
        assert relative_error(prefill(pair.reference, batch, rows), expected_logits) < tolerance


@by_case
def test_greedy_tokens_equal_transformers(pair, case):
    batch = make_batch(case, pair.reference.config)
    decoder = ReferenceDecoder(pair.reference, len(batch.prompts), int(batch.lengths.max()) + NUM_STEPS)
    tokens = greedy_tokens(decoder, batch, visual_embeds(pair.reference, batch), NUM_STEPS)
    assert tokens.tolist() == peers.greedy_tokens(pair.peer, batch, NUM_STEPS).tolist()
    assert all(len(set(row)) > 4 for row in tokens.tolist()), "a few repeated tokens would prove little"
    if case.transformers_positions_agree:
        assert tokens.tolist() == peers.generated_tokens(pair.peer, batch, NUM_STEPS).tolist()


@by_case
def test_position_ids_of_transformers_differ_from_the_papers_on_long_videos_only(pair, case):
    batch = make_batch(case, pair.reference.config)
    inputs = peers.forward_inputs(batch)
    position_ids, deltas = pair.peer.model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        inputs.get("image_grid_thw"),
        inputs.get("video_grid_thw"),
        inputs["attention_mask"],
    )
    agree = torch.equal(position_ids, peers.position_ids(batch)) and deltas[:, 0].tolist() == list(
        batch.deltas
    )
    assert agree is case.transformers_positions_agree


def test_a_pad_without_a_visual_row_is_a_plain_token_as_in_transformers(pair):
    batch = make_batch(CASE["image_and_video"], pair.reference.config)
    no_rows = np.zeros((0, pair.reference.config.decoder.hidden_size), np.float32)
    input_ids = torch.from_numpy(batch.prompts[0].token_ids)[None]
    expected = pair.peer(input_ids=input_ids, position_ids=peers.position_ids(batch)).logits
    assert relative_error(prefill(pair.reference, batch, no_rows), expected[0].numpy()) < ROUNDING


def test_only_the_pads_that_find_a_row_take_one(pair):
    model = pair.reference
    batch = make_batch(CASE["one_image"], model.config)
    embeds = visual_embeds(model, batch)
    tokens = torch.from_numpy(batch.prompts[0].token_ids)[None]
    embedded = model.embed(tokens, torch.from_numpy(embeds[:4]))[0]
    table = model.model.embed_tokens.weight
    pads = np.flatnonzero(batch.prompts[0].token_ids == model.config.image_token_id)
    assert np.array_equal(embedded[pads[:4]], embeds[:4])
    assert torch.equal(embedded[pads[4:]], table[model.config.image_token_id].expand(len(pads) - 4, -1))


# What the comparisons above would notice: each of these is a mistake that somebody made before.


def with_positions(batch: Batch, position_ids: np.ndarray) -> Batch:
    prompt = replace(batch.prompts[0])
    object.__setattr__(prompt, "position_ids", position_ids.astype(np.int32))
    return Batch([prompt])


def test_the_cases_notice_positions_without_axes_a_leak_between_pictures_and_swapped_rows(pair):
    model = pair.reference
    batch = make_batch(CASE["image_and_video"], model.config)
    embeds = visual_embeds(model, batch)
    logits = prefill(model, batch, embeds)

    one_axis = with_positions(batch, np.tile(np.arange(len(batch.prompts[0])), (3, 1)))
    assert relative_error(prefill(model, one_axis, embeds), logits) > 100 * ROUNDING_TWICE

    vision = ReferenceVision(model)
    leaky = vision.encode(VisionInputs.of(batch.patches, batch.positions, batch.cu_seqlens[[0, -1]]))
    transposed = vision.encode(
        VisionInputs.of(batch.patches, np.ascontiguousarray(batch.positions[::-1]), batch.cu_seqlens)
    )
    for wrong in (leaky, transposed):
        assert relative_error(wrong, embeds) > 100 * ROUNDING_TWICE
        assert relative_error(prefill(model, batch, wrong), logits) > 100 * ROUNDING_TWICE


# Properties of the reference itself


def test_cached_decode_and_chunked_prefill_equal_one_prefill(pair):
    model = pair.reference
    batch = make_batch(CASE["image_and_video"], model.config)
    embeds = visual_embeds(model, batch)
    whole = prefill(model, batch, embeds)
    length = int(batch.lengths[0])
    for chunk in (1, 7, length - 1):
        decoder = ReferenceDecoder(model, 1, length)
        pieces = [decoder.forward(0, inputs)[0] for inputs in batch.chunks(embeds, chunk)]
        assert relative_error(np.concatenate(pieces), whole) < ROUNDING
