import pytest

from examples.tiny.scoring import box_iou, is_right
from examples.tiny.tasks import Sample, Turn, format_box

TRUTH = format_box((0, 0, 50, 100), (100, 100))


def test_boxes_are_written_on_a_grid_of_a_thousand():
    assert format_box((14, 7, 28, 35), (140, 70)) == "<|box_start|>(100,100),(200,500)<|box_end|>"


@pytest.mark.parametrize(
    ("box", "iou"),
    [
        ((0, 0, 50, 100), 1.0),
        ((0, 0, 100, 100), 0.5),
        ((25, 0, 75, 100), 1 / 3),
        ((50, 0, 100, 100), 0.0),
        ((50, 100, 0, 0), 0.0),
    ],
)
def test_overlap_of_two_boxes(box, iou):
    assert box_iou(format_box(box, (100, 100)), TRUTH) == pytest.approx(iou)


@pytest.mark.parametrize("answer", ["", "(0,0),(500,1000)", TRUTH + " "])
def test_what_is_no_box_overlaps_nothing(answer):
    assert box_iou(answer, TRUTH) == 0


def test_only_boxes_may_be_nearly_right():
    box = Sample("box", (), (Turn("", TRUTH),))
    assert is_right(box, format_box((0, 0, 60, 100), (100, 100)))
    assert not is_right(box, format_box((0, 0, 100, 100), (100, 100)))
    text = Sample("read", (), (Turn("", "A7"), Turn("", "B8")))
    assert is_right(text, "A7")
    assert not is_right(text, "A7 ")
