import numpy as np
import pytest

from engines.runtime.answer import Request
from engines.runtime.decoder_inputs import (
    decode_inputs,
    decode_row,
    idle_row,
    padding_token_id,
    prefill_inputs,
)
from engines.runtime.sequence import TokenSequence
from export.checkpoint.generation_config import GenerationConfig
from tests.engines.runtime.fake_engine import HIDDEN, IMAGE, MODEL, VIDEO, make_inputs

PROMPTS = [[11, IMAGE, IMAGE, 12, VIDEO], [13, 14, 15], [16, VIDEO, 17, 18]]


def make_answers() -> list[TokenSequence]:
    """Three answers in slots 0 to 2, nothing cached; visual row r of answer a holds 10 a + r."""
    answers = []
    for index, token_ids in enumerate(PROMPTS):
        num_visual = sum(token_id in (IMAGE, VIDEO) for token_id in token_ids)
        rows = np.arange(num_visual, dtype=np.float32) + 10 * index
        request = Request(make_inputs(token_ids, seed=index), GenerationConfig())
        sequence = TokenSequence(request, index, MODEL)
        sequence.take_slot(index)
        sequence.visual_embeds = np.tile(rows[:, None], (1, HIDDEN))
        answers.append(sequence)
    return answers


def test_a_prefill_chunk_is_right_padded_and_takes_each_rows_own_visual_embeddings():
    answers = make_answers()
    for answer, num_cached in zip(answers, (2, 1, 0), strict=True):
        answer.num_cached_tokens = num_cached
    inputs = prefill_inputs(answers, MODEL, max_tokens=3)
    pad = padding_token_id(MODEL)
    assert inputs.token_ids.tolist() == [[IMAGE, 12, VIDEO], [14, 15, pad], [16, VIDEO, 17]]
    assert inputs.visual_embeds[:, 0].tolist() == [1, 2, 20]
    assert (inputs.write_index.tolist(), inputs.kv_lengths.tolist()) == ([2, 1, 0], [5, 3, 3])
    assert inputs.logits_index.tolist() == [[2], [1], [2]]
    np.testing.assert_array_equal(inputs.position_ids[:, 0], answers[0].request.inputs.position_ids[:, 2:5])
    np.testing.assert_array_equal(
        inputs.position_ids[:, 1, :2], answers[1].request.inputs.position_ids[:, 1:3]
    )


def test_a_decode_step_feeds_newest_tokens_at_cache_length_plus_delta():
    answers = make_answers()
    for answer in answers:
        answer.num_cached_tokens = answer.num_prompt_tokens
        answer.token_ids = [40 + answer.number, 50 + answer.number]
    inputs = decode_inputs([decode_row(answer) for answer in answers], MODEL)
    assert inputs.token_ids.tolist() == [[50], [51], [52]]
    assert inputs.write_index.tolist() == [5, 3, 4]
    assert inputs.kv_lengths.tolist() == [6, 4, 5]
    assert inputs.logits_index.tolist() == [[0], [0], [0]]
    assert inputs.visual_embeds.shape == (0, HIDDEN)
    expected = [answer.num_cached_tokens + answer.request.inputs.position_delta for answer in answers]
    assert inputs.position_ids[:, :, 0].tolist() == [expected] * 3


def test_an_idle_slot_computes_padding_just_past_what_it_holds_and_never_past_its_end():
    inputs = decode_inputs([idle_row(num_cached, MODEL, capacity=5) for num_cached in (0, 3, 5)], MODEL)
    assert (inputs.write_index.tolist(), inputs.kv_lengths.tolist()) == ([0, 3, 4], [1, 4, 5])
    assert inputs.token_ids.tolist() == [[padding_token_id(MODEL)]] * 3


@pytest.mark.parametrize(("image", "video"), [(0, 1), (1, 0), (2, 5), (7, 9)])
def test_padding_is_never_a_visual_token(image, video):
    model = type(MODEL)(**{**vars(MODEL), "image_token_id": image, "video_token_id": video})
    assert padding_token_id(model) not in (image, video)
