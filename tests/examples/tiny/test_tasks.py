import numpy as np
import pytest

from examples.tiny.pictures import COLORS, Scene
from examples.tiny.tasks import ALPHABET, CHINESE, TASKS, Sample, format_box, make_sample

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
    answers = [make_sample("read", (2, i)).answer for i in range(80)]
    assert all(2 <= len(answer) <= 8 and set(answer) <= set(ALPHABET) for answer in answers)
    assert {len(answer) for answer in answers} == set(range(2, 9))


def _lines(scene: Scene) -> list[str]:
    """The scene's glyphs, one line for each height."""
    lines: dict[float, str] = {}
    for glyph in scene.glyphs:
        lines[glyph.y] = lines.get(glyph.y, "") + glyph.character
    return list(lines.values())


def test_a_receipt_is_asked_for_the_value_in_the_row_of_the_name():
    for i in SEEDS:
        sample = make_sample("receipt", (3, i))
        lines = _lines(sample.media[0].scenes[0])
        for turn in sample.turns:
            assert any(
                line.endswith(turn.answer) and line.removesuffix(turn.answer) in turn.prompt for line in lines
            )


def test_a_ledger_s_values_have_few_different_characters():
    for i in SEEDS:
        sample = make_sample("ledger", (3, i))
        lines = _lines(sample.media[0].scenes[0])
        assert len(set("".join(turn.answer for turn in sample.turns)) - {"."}) <= 4
        for turn in sample.turns:
            assert any(
                line.endswith(turn.answer) and line.removesuffix(turn.answer) in turn.prompt for line in lines
            )


def test_counts_say_how_many_shapes_have_the_color():
    for i in SEEDS:
        sample = make_sample("count", (4, i))
        shapes = sample.media[0].scenes[0].shapes
        for turn in sample.turns:
            (color,) = (color for color in COLORS if color in turn.prompt or CHINESE[color] in turn.prompt)
            assert sum(shape.color == color for shape in shapes) == int(turn.answer)


def test_the_box_is_the_asked_shape_s_and_no_other_s():
    for i in SEEDS:
        sample = make_sample("box", (5, i))
        scene = sample.media[0].scenes[0]
        for turn in sample.turns:
            asked = [
                shape
                for shape in scene.shapes
                if all(
                    word in turn.prompt or CHINESE[word] in turn.prompt for word in (shape.color, shape.kind)
                )
            ]
            assert [format_box(shape.box, scene.size) for shape in asked] == [turn.answer]


def test_each_of_several_pictures_is_asked_for_by_its_number():
    for i in SEEDS:
        sample = make_sample("pictures", (9, i))
        assert len(sample.media) in {2, 3}
        for turn in sample.turns:
            (number,) = (n for n in "123" if n in turn.prompt or f"第{CHINESE[n]}张" in turn.prompt)
            scene = sample.media[int(number) - 1].scenes[0]
            shown = _lines(scene) or [shape.color for shape in scene.shapes]
            assert turn.answer in (shown[0], CHINESE.get(shown[0]))


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
        (way,) = (way for way in ways if sample.answer in (way, CHINESE[way]))
        moved = _centers(sample)[-1] - _centers(sample)[0]
        assert np.dot(moved, ways[way]) > 25


def test_both_frames_of_a_step_show_the_same_text():
    for i in SEEDS:
        sample = make_sample("order", (7, i))
        frames = sample.media[0].frames
        assert all(np.array_equal(a, b) for a, b in zip(frames[::2], frames[1::2], strict=True))
        texts = [_lines(scene)[0] for scene in sample.media[0].scenes]
        assert sample.answer in {texts[0], texts[-1]}


def test_texts_keep_within_their_picture():
    for task in ("read", "receipt", "pictures", "order"):
        for i in SEEDS:
            for medium in make_sample(task, (8, i)).media:
                for scene in medium.scenes:
                    for glyph in scene.glyphs:
                        x, y = glyph.center
                        assert 0 < x < scene.size[0]
                        assert 0 < y < scene.size[1]
