from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from export.errors import UserError
from export.files.json_fields import Check, dataclass_from_json, read_dataclass


@dataclass(frozen=True)
class Part:
    name: str
    size: Annotated[int, Check("a size", lambda size: size >= 0)] = 0

    def __post_init__(self) -> None:
        if self.name == "none":
            raise UserError("name must be another one.")


@dataclass(frozen=True)
class Whole:
    kind: Literal["a", "b"]
    ratio: float
    parts: tuple[Part, ...] = ()
    by_name: Mapping[str, Part] = field(default_factory=dict)
    counts: Annotated[Mapping[str, int], Check("an object of counts")] = field(default_factory=dict)
    note: str | None = None
    rest: Any = None


def test_every_kind_of_field_is_made():
    made = dataclass_from_json(
        Whole,
        {
            "kind": "b",
            "ratio": 1,
            "parts": [{"name": "x", "size": 3}],
            "by_name": {"y": {"name": "y"}},
            "counts": {"z": 1},
            "note": None,
            "rest": [1, {}],
        },
        "it",
    )
    assert made == Whole("b", 1.0, (Part("x", 3),), {"y": Part("y")}, {"z": 1}, None, [1, {}])
    assert type(made.ratio) is float


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"kind": "c"}, "kind must be one of a, b, found 'c'"),
        ({"kind": ["a"]}, "kind must be one of a, b, found ['a']"),
        ({"ratio": True}, "ratio must be a number, found True"),
        ({"ratio": float("nan")}, "ratio must be a number, found nan"),
        ({"parts": {}}, "parts must be a list, found {}"),
        ({"parts": [3]}, "parts must be an object, found 3"),
        ({"parts": [{}]}, "parts: missing keys name"),
        ({"parts": [{"name": "x", "size": -1}]}, "parts: size must be a size, found -1"),
        ({"parts": [{"name": "none"}]}, "name must be another one"),
        ({"by_name": []}, "by_name must be an object, found []"),
        ({"by_name": {"y": {"name": 5}}}, "by_name: y: name must be a string, found 5"),
        ({"counts": {"z": "1"}}, "counts must be an object of counts, found {'z': '1'}"),
        ({"note": 1}, "note must be a string or null, found 1"),
        ({"colour": 1}, "unknown keys colour; known are by_name, counts, kind, note, parts, ratio, rest"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(change, problem):
    problems: list[str] = []
    assert read_dataclass(Whole, {"kind": "a", "ratio": 0.5, **change}, problems) is None
    assert problems == [problem]


def test_all_problems_are_told_at_once():
    with pytest.raises(UserError) as caught:
        dataclass_from_json(Whole, {"note": 1, "parts": [{"size": "x"}], "what": 0}, "file.json")
    text = str(caught.value)
    for part in (
        "unknown keys what",
        "missing keys kind, ratio",
        "note must",
        "parts: missing keys",
        "size must",
    ):
        assert part in text
    assert all(line.startswith("file.json: ") for line in text.splitlines())


def test_no_key_may_be_left_out_where_the_whole_is_asked_for():
    problems: list[str] = []
    assert read_dataclass(Part, {"name": "x"}, problems) == Part("x")
    assert read_dataclass(Part, {"name": "x"}, problems, whole=True) is None
    assert problems == ["missing keys size"]
