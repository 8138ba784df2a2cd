import pytest

from export.processor.text.located import located_in_text

TWO = (
    "<|object_ref_start|>red shape<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>"
    "<|object_ref_start|>dot<|object_ref_end|><|box_start|>(500,1000)<|box_end|>"
)


def told(text, sizes=((640, 480),)):
    return [(one.kind, one.label, one.pixels) for one in located_in_text(text, list(sizes))]


def test_boxes_and_points_are_told_with_their_labels_in_pixels():
    assert told(TWO) == [
        ("box", "red shape", ((64.0, 96.0), (192.0, 192.0))),
        ("point", "dot", ((320.0, 480.0),)),
    ]


def test_one_label_has_several_boxes_and_text_between_ends_it():
    box = "<|box_start|>(0,0),(10,10)<|box_end|>"
    text = f"<|object_ref_start|>cup<|object_ref_end|>{box}, {box} and there {box}"
    assert [label for _, label, _ in told(text)] == ["cup", "cup", None]


def test_quadrangles_have_four_corners():
    text = "<|quad_start|>(0,0),(1000,0),(1000,500),(0,500)<|quad_end|>"
    assert told(text) == [("quad", None, ((0.0, 0.0), (640.0, 0.0), (640.0, 240.0), (0.0, 240.0)))]


@pytest.mark.parametrize("sizes", [(), ((10, 10), (20, 20))])
def test_of_no_picture_or_several_no_pixels_are_told(sizes):
    [first, _] = located_in_text(TWO, list(sizes))
    assert first.pixels is None
    assert first.thousandths == ((100, 200), (300, 400))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(1,2),(3,4)",
        "<|box_start|>(1,2),(3,4)",
        "<|box_start|>(1,2),(3,4),(5,6)<|box_end|>",
        "<|box_start|>(1,2),(3,1001)<|box_end|>",
        "<|quad_start|>(1,2),(3,4)<|quad_end|>",
        "<|box_start|>one,two<|box_end|>",
    ],
)
def test_what_is_no_place_is_none(text):
    assert told(text) == []
