import numpy as np
import pytest

from examples.tiny.pictures import COLORS
from examples.tiny.scoring import box_iou
from examples.tiny.tasks import ALPHABET, TASKS, Sample, make_sample

SEEDS = range(40)


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_depends_on_its_seed_alone(task):
    one, same, other = (make_sample(task, (7, i)) for i in (0, 0, 1))
    assert (one.prompt, one.answer) == (same.prompt, same.answer)
    frames = [[frame for medium in sample.media for frame in medium.frames] for sample in (one, same, other)]
    assert all(np.array_equal(a, b) for a, b in zip(frames[0], frames[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(frames[0], frames[2], strict=False))


@pytest.mark.parametrize("task", TASKS)
def test_prompts_come_in_both_languages(task):
    prompts = [make_sample(task, (1, i)).prompt for i in SEEDS]
    assert any(prompt.isascii() for prompt in prompts)
    assert not all(prompt.isascii() for prompt in prompts)


def test_texts_to_read_have_two_to_eight_characters_of_the_alphabet():
    answers = [make_sample("read", (2, i)).answer for i in SEEDS]
    assert all(2 <= len(answer) <= 8 and set(answer) <= set(ALPHABET) for answer in answers)
    assert {len(answer) for answer in answers} == set(range(2, 9))


def test_only_what_is_asked_of_a_receipt_is_the_answer():
    for i in SEEDS:
        sample = make_sample("receipt", (3, i))
        rows = dict(line.split() for line in sample.in_words.splitlines())
        asked = [name for name in rows if name in sample.prompt]
        assert sample.answer in {rows[name] for name in asked}


def test_counts_say_how_many_shapes_have_the_color():
    for i in SEEDS:
        sample = make_sample("count", (4, i))
        if sample.prompt.isascii():
            (color,) = COLORS.keys() & set(sample.prompt.strip("?.").split())
            assert sample.in_words.split().count(color) == int(sample.answer)


def test_the_box_holds_the_shape_and_no_other():
    for i in SEEDS:
        sample = make_sample("box", (5, i))
        boxes = {line.split()[2] for line in sample.in_words.splitlines()}
        assert sample.answer in boxes
        assert all(box == sample.answer or box_iou(box, sample.answer) == 0 for box in boxes)


def _centers(sample: Sample) -> np.ndarray:
    """Where the square stands in each step: the pixels that differ most from the picture's corner-to-corner mean."""
    frames = [frame.astype(float) for frame in sample.media[0].frames[::2]]
    differences = [abs(frame - np.median(frame, axis=(0, 1))).sum(-1) for frame in frames]
    masks = [difference > 0.6 * difference.max() for difference in differences]
    return np.array([np.argwhere(mask).mean(0) for mask in masks])  # [steps, (y, x)]


def test_the_square_moves_the_way_the_answer_says():
    ways = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    for i in SEEDS:
        sample = make_sample("direction", (6, i))
        moved = np.diff(_centers(sample), axis=0).mean(0)
        assert np.dot(moved, ways[sample.in_words]) > 3


def test_both_frames_of_a_step_show_the_same_text():
    for i in SEEDS:
        sample = make_sample("order", (7, i))
        frames = sample.media[0].frames
        assert all(np.array_equal(a, b) for a, b in zip(frames[::2], frames[1::2], strict=True))
        texts = sample.in_words.splitlines()
        assert sample.answer in {texts[0], texts[-1]}


def test_easy_levels_are_shorter():
    lengths = [len(make_sample("read", (8, i), 0.0).answer) for i in SEEDS]
    assert max(lengths) <= 4
