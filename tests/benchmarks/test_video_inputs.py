import numpy as np
import pytest

from benchmarks.video_inputs import (
    BITS,
    COMBINATIONS,
    ROOT,
    VARIATIONS,
    judged,
    number_of,
    numbered_frame,
    table,
)
from export.processor.processor import Processor


@pytest.fixture(scope="module")
def processor():
    return Processor.from_directory(ROOT / "models" / "qwen2-vl-tiny")


def test_a_frame_shows_its_number_at_any_size():
    for number in (0, 1, 77, 2**BITS - 1):
        frame = numbered_frame(number)
        assert number_of(frame) == number
        assert number_of(frame[::2, ::2]) == number
    assert number_of(np.rot90(numbered_frame(77), 2)) != 77


@pytest.mark.parametrize("variation", VARIATIONS[:6], ids=lambda variation: variation.name)
def test_an_mp4_is_seen_whole_in_every_way_in_which_it_is_odd(processor, variation):
    assert judged(processor, "mp4", "libx264", "yuv420p", variation) == "seen"


def test_an_avi_with_frames_out_of_order_is_seen_in_order(processor):
    text, num_wrong = table(processor, [("avi", "libx264", "yuv420p")])
    assert num_wrong == 0
    assert text.splitlines()[2].startswith("| avi | libx264 | seen | seen | seen |")


def test_there_are_thirty_combinations():
    assert len(set(COMBINATIONS)) >= 30
