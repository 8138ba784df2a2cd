"""Scoring of answers: word for word, but for boxes, which must overlap the true one by more than half."""

import re

from examples.tiny.tasks import Sample

MIN_IOU = 0.5
_BOX = re.compile(r"<\|box_start\|>\((\d+),(\d+)\),\((\d+),(\d+)\)<\|box_end\|>")


def is_right(sample: Sample, answer: str) -> bool:
    if sample.task == "box":
        return box_iou(answer, sample.answer) > MIN_IOU
    return answer == sample.answer


def box_iou(answer: str, truth: str) -> float:
    """Intersection over union of two boxes in the family's notation; 0 where one is malformed or empty."""
    found = [_BOX.fullmatch(text) for text in (answer, truth)]
    if found[0] is None or found[1] is None:
        return 0.0
    one, two = ([int(corner) for corner in match.groups()] for match in found if match)
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    overlap = max(width, 0) * max(height, 0)
    union = _area(one) + _area(two) - overlap
    return overlap / union if union > 0 else 0.0


def _area(box: list[int]) -> int:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
