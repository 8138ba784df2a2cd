from dataclasses import replace

import numpy as np
import pytest

from engines.runtime.vision.images import encode_images, images_from_inputs
from engines.session import EngineError
from export.inputs import ModelInputs
from tests.engines.runtime.fake_engine import (
    HIDDEN,
    IMAGE,
    MODEL,
    PATCH_VALUES,
    VIDEO,
    FakeVision,
    encode_patches,
)

GRIDS = ((1, 2, 4), (3, 2, 2))
TOKENS = [10, IMAGE, IMAGE, 11, VIDEO, VIDEO, VIDEO, 12]


def make_inputs(grids=GRIDS, seed=0) -> ModelInputs:
    """A picture of 8 patches and a video of three steps of 4."""
    num_patches = sum(steps * rows * columns for steps, rows, columns in grids)
    return ModelInputs(
        token_ids=np.array(TOKENS, np.int64),
        position_ids=np.zeros((3, len(TOKENS)), np.int32),
        position_delta=0,
        patches=np.random.default_rng(seed).standard_normal((num_patches, PATCH_VALUES)).astype(np.float32),
        positions=np.arange(2 * num_patches, dtype=np.int32).reshape(2, -1),
        cu_seqlens=np.array([0, 8, 12, 16, 20], np.int32),
        grids=grids,
    )


def test_each_picture_knows_its_patches_segments_and_tokens():
    inputs = make_inputs()
    picture, video = images_from_inputs(inputs, MODEL)
    assert (picture.segment_patches, video.segment_patches) == ((8,), (4, 4, 4))
    assert (picture.first_token, picture.last_token, video.first_token, video.last_token) == (1, 2, 4, 6)
    assert picture.patches.tolist() == inputs.patches[:8].tolist()
    assert video.positions.tolist() == inputs.positions[:, 8:].tolist()
    assert np.shares_memory(video.patches, inputs.patches)


def test_a_digest_tells_content_and_shape_and_nothing_else():
    inputs = make_inputs()
    digests = [picture.digest for picture in images_from_inputs(inputs, MODEL)]
    moved = replace(inputs, token_ids=np.array([9, *TOKENS]), position_ids=np.ones((3, 9), np.int32))
    assert [picture.digest for picture in images_from_inputs(moved, MODEL)] == digests

    patches = inputs.patches.copy()
    patches[7, -1] = np.nextafter(patches[7, -1], np.float32(9))
    assert images_from_inputs(replace(inputs, patches=patches), MODEL)[0].digest != digests[0]
    taller = images_from_inputs(replace(inputs, grids=((1, 4, 2), (3, 2, 2))), MODEL)
    assert (taller[0].digest != digests[0], taller[1].digest == digests[1]) == (True, True)


def test_packed_pictures_get_their_own_embeddings_in_memory_of_their_own():
    class Checking(FakeVision):
        def encode(self, inputs):
            assert inputs.cu_seqlens.tolist() == [0, 4, 8, 12, 20]
            assert inputs.cu_seqlens.dtype == inputs.positions.dtype == np.int32
            return super().encode(inputs)

    pictures = images_from_inputs(make_inputs(), MODEL)[::-1]
    vision = Checking()
    embeds = encode_images(pictures, vision, MODEL)
    assert [part.shape for part in embeds] == [(3, HIDDEN), (2, HIDDEN)]
    for picture, part in zip(pictures, embeds, strict=True):
        assert isinstance(part, np.ndarray)
        np.testing.assert_allclose(part, encode_patches(picture.patches), rtol=1e-6)
        assert not np.shares_memory(part, vision.embeds)


def test_an_engine_that_returns_another_number_of_rows_is_called_faulty():
    class Broken(FakeVision):
        def encode(self, inputs):
            return super().encode(inputs)[1:]

    with pytest.raises(EngineError, match=rf"shape \(4, {HIDDEN}\), expected \(5, {HIDDEN}\) for 20 patches"):
        encode_images(images_from_inputs(make_inputs(), MODEL), Broken(), MODEL)
