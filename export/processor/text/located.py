"""What an answer located: boxes, points and quadrangles with their labels, in pixels of the picture as it was sent.

Qwen2-VL writes coordinates as whole numbers from 0 to 1,000 of a picture's width and height, between marks that are
special tokens (Qwen2-VL technical report, section 2.2.1):

    <|object_ref_start|>the red car<|object_ref_end|><|box_start|>(112,80),(640,455)<|box_end|>
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

GRID = 1000
"""Coordinates are thousandths."""

MARKS = frozenset(f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad") for end in ("start", "end"))
"""Special tokens without which a label and its boxes cannot be told apart."""

Size = tuple[int, int]
"""Width and height in pixels."""

_LABEL = r"<\|object_ref_start\|>(?P<label>.*?)<\|object_ref_end\|>"
_PLACE = r"<\|(?P<kind>box|quad)_start\|>(?P<numbers>[^<]*)<\|(?P=kind)_end\|>"
_PART = re.compile(f"{_LABEL}|{_PLACE}", re.DOTALL)
_POINT = re.compile(r"\(\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)")
_KINDS: dict[tuple[str, int], Literal["box", "point", "quad"]] = {
    ("box", 2): "box",
    ("box", 1): "point",
    ("quad", 4): "quad",
}


@dataclass(frozen=True)
class Located:
    """One place in a picture."""

    kind: Literal["box", "point", "quad"]
    label: str | None
    """What the answer calls it, where it says so just before."""
    thousandths: tuple[tuple[int, int], ...]
    """(x, y) as the model wrote them: two corners of a box, one point, four corners of a quadrangle."""
    pixels: tuple[tuple[float, float], ...] | None
    """(x, y) in the picture, its left upper corner being (0, 0); None where it is not known which picture is meant."""


def located_in_text(text: str, picture_sizes: Sequence[Size]) -> list[Located]:
    """Every place that an answer names, in order.

    Args:
        text: with its marks, as `TextStream` gives it with `keep_marks`.
        picture_sizes: of the conversation's pictures, upright as shown. Pixels are only told of one picture alone: the
            model does not say which of several it means.
    """
    size = picture_sizes[0] if len(picture_sizes) == 1 else None
    return [
        Located(
            kind, label, points, None if size is None else tuple(_pixels(point, size) for point in points)
        )
        for kind, label, points in _places(text)
    ]


def _places(
    text: str,
) -> Iterator[tuple[Literal["box", "point", "quad"], str | None, tuple[tuple[int, int], ...]]]:
    label, end = None, 0
    for part in _PART.finditer(text):
        if part["label"] is not None:
            label, end = part["label"].strip(), part.end()
            continue
        # A label is that of the places that follow it with nothing but separators between.
        if text[end : part.start()].strip(" \n,;"):
            label = None
        end = part.end()
        points = tuple((int(x), int(y)) for x, y in _POINT.findall(part["numbers"]))
        kind = _KINDS.get((part["kind"], len(points)))
        if kind is not None and all(value <= GRID for point in points for value in point):
            yield kind, label, points


def _pixels(point: tuple[int, int], size: Size) -> tuple[float, float]:
    return point[0] * size[0] / GRID, point[1] * size[1] / GRID
