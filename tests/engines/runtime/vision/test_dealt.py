"""A vision call dealt among several sessions against one packed call."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.backends.onnxruntime.session import OnnxRuntimeVision
from engines.runtime.vision.dealt import DealtVision, deal
from export.bundle import open_bundle
from export.inputs import VisionInputs
from tests.support.bundles import shared_bundle
from tests.support.cases import CASES, make_batch


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(shared_bundle(tmp_path_factory, {"dtype": "float32", "vision_depth": 3}))


def inputs_of(batch):
    return VisionInputs.of(batch.patches, batch.positions, batch.cu_seqlens)


@pytest.mark.parametrize("num_sessions", [1, 2, 4])
@pytest.mark.parametrize("name", ["three_images", "image_and_video", "ragged_batch", "long_video"])
def test_embeddings_are_bit_identical(bundle, name, num_sessions):
    batch = make_batch(next(case for case in CASES if case.name == name), bundle.config)
    sessions = [OnnxRuntimeVision(bundle, num_threads=1) for _ in range(num_sessions)]
    assert np.array_equal(
        DealtVision(sessions).encode(inputs_of(batch)), sessions[0].encode(inputs_of(batch))
    )


def test_sessions_work_at_the_same_time(bundle):
    meeting = threading.Barrier(2, timeout=60)

    class Meeting:
        def encode(self, inputs):
            meeting.wait()
            return np.zeros((len(inputs.patches) // 4, 8), np.float32)

    batch = make_batch(next(case for case in CASES if case.name == "three_images"), bundle.config)
    assert len(DealtVision([Meeting(), Meeting()]).encode(inputs_of(batch))) == len(batch.patches) // 4


def test_an_error_of_one_session_is_the_call_s(bundle):
    class Broken:
        def encode(self, _inputs):
            raise ValueError("broken")

    batch = make_batch(next(case for case in CASES if case.name == "three_images"), bundle.config)
    with pytest.raises(ValueError, match="broken"):
        DealtVision([OnnxRuntimeVision(bundle, 1), Broken()]).encode(inputs_of(batch))


@given(st.lists(st.integers(4, 4000), min_size=1, max_size=40), st.integers(1, 8))
def test_every_segment_is_dealt_once_and_no_hand_is_far_above_another(lengths, num_hands):
    hands = deal(lengths, num_hands)
    assert sorted(segment for hand in hands for segment in hand) == list(range(len(lengths)))
    loads = [sum(lengths[i] ** 2 + lengths[i] for i in hand) for hand in hands]
    # Whoever gives to the least loaded is within twice what no dealing can go below (Graham 1966).
    least = max(sum(loads) / num_hands, *(n**2 + n for n in lengths))
    assert max(loads) <= 2 * least
