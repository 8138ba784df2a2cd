"""The score counts what it says it counts."""

from examples.tiny.evaluate import accuracy, by_size, held_out


def test_boxes_are_scored_by_how_many_shapes_there_are_and_texts_by_their_length():
    for task, sizes in (("box", {1, 2, 3}), ("read", set(range(2, 9)))):
        samples = held_out(task, 80)
        right = by_size(samples, [sample.answer for sample in samples])
        assert right == dict.fromkeys(sorted(sizes), 1.0), task

    def said(sample):
        return sample.answer if len(sample.media[0].scenes[0].shapes) == 1 else "nowhere"

    boxes = held_out("box", 80)
    assert by_size(boxes, [said(sample) for sample in boxes]) == {1: 1.0, 2: 0.0, 3: 0.0}


def test_held_out_samples_stay_the_same_and_wrong_answers_count():
    samples = held_out("count", 4)
    assert samples == held_out("count", 4)
    assert accuracy(samples, [samples[0].answer, "seven", "seven", "seven"]) == 0.25
