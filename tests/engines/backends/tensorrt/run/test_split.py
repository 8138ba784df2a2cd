import numpy as np
import pytest

from engines.backends.tensorrt.run.split import decoder_calls, vision_calls
from export.errors import UserError
from export.inputs import DecoderInputs

PADS = (7, 8)


def two_rows() -> DecoderInputs:
    """Row 0 has 5 tokens with two pads, row 1 has 3 with two more, of which the last finds no embedding."""
    return DecoderInputs(
        token_ids=np.array([[1, 7, 2, 7, 3], [8, 4, 7, 0, 0]]),
        visual_embeds=np.array([[10.0], [11.0], [12.0]], np.float32),
        position_ids=np.arange(30, dtype=np.int32).reshape(3, 2, 5),
        write_index=np.array([0, 6]),
        kv_lengths=np.array([5, 9]),
        logits_index=np.array([[0, 4], [1, 2]]),
    )


def test_a_call_that_fits_goes_through_as_it_is():
    inputs = two_rows()
    (call,) = decoder_calls(inputs, PADS, max_tokens=5, max_logits_tokens=2)
    assert call.inputs is inputs
    assert call.columns.tolist() == [0, 1]
    assert call.is_asked.all()


def test_a_long_call_goes_in_chunks_each_with_its_own_embeddings_and_lengths():
    first, second, third = decoder_calls(two_rows(), PADS, max_tokens=2, max_logits_tokens=2)
    assert [call.inputs.token_ids.tolist() for call in (first, second, third)] == [
        [[1, 7], [8, 4]],
        [[2, 7], [7, 0]],
        [[3], [0]],
    ]
    assert [call.inputs.visual_embeds.ravel().tolist() for call in (first, second, third)] == [
        [10, 12],  # row 0's first pad, row 1's first
        [11],  # row 0's second; row 1's last pad stays a plain token
        [],
    ]
    assert [call.inputs.write_index.tolist() for call in (first, second, third)] == [[0, 6], [2, 8], [4, 10]]
    assert [call.inputs.kv_lengths.tolist() for call in (first, second, third)] == [[2, 8], [4, 9], [5, 9]]
    assert first.inputs.position_ids.tolist() == two_rows().position_ids[:, :, :2].tolist()


def test_each_asked_logit_is_asked_of_its_chunk_and_once():
    calls = list(decoder_calls(two_rows(), PADS, max_tokens=2, max_logits_tokens=1))
    asked = [
        (int(row), int(column), start + int(call.inputs.logits_index[row, i]))
        for call in calls
        for start in [int(call.inputs.write_index[0])]
        for i, column in enumerate(call.columns)
        for row in np.flatnonzero(call.is_asked[:, i])
    ]
    assert sorted(asked) == [(0, 0, 0), (0, 1, 4), (1, 0, 1), (1, 1, 2)]
    assert all(call.inputs.logits_index.shape[1] == 1 for call in calls)


def test_pictures_go_in_groups_of_neighbours_that_fit():
    offsets = np.array([0, 16, 40, 44, 60, 124], np.int32)
    assert list(vision_calls(offsets, max_patches=64, max_segments=3)) == [(0, 3), (3, 4), (4, 5)]
    assert list(vision_calls(offsets, max_patches=64, max_segments=2)) == [(0, 2), (2, 4), (4, 5)]
    assert list(vision_calls(offsets, max_patches=124, max_segments=9)) == [(0, 5)]


def test_one_picture_too_large_is_refused_with_both_remedies():
    with pytest.raises(
        UserError, match=r"64 patches .* takes 60 at once. .*max_pixels to 11,760.*--max-patches 64"
    ):
        list(vision_calls(np.array([0, 64], np.int32), max_patches=60, max_segments=3))
