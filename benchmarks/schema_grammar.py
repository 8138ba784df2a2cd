"""Draws JSON schemas as people write them, by Hypothesis: for tests of forms and for `benchmarks.guided`."""

from typing import Any

import jsonschema
from hypothesis import strategies as st

NAMES = ("id", "name", "größe", "a b", "total", "$x", "<|im_end|>")
"""Of properties; one reads like a special token."""

Schema = dict[str, Any]

FORMATS = jsonschema.FormatChecker(("ipv4", "uuid"))
"""Formats that are judged. Not dates: a grammar gives them their shape, 2026-02-30 too, and the year 0000, which RFC
3339 has, is none of Python's."""

SCALARS: tuple[Schema, ...] = (
    {"type": "integer", "minimum": -5, "maximum": 20},
    {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 1000},
    {"type": "boolean"},
    {"type": "null"},
    {"type": "string", "maxLength": 4},
    {"type": "string", "minLength": 2, "maxLength": 6},
    {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 4},
    {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
    {"type": ["boolean", "string"], "maxLength": 3},
    {"enum": ["a", 1, None, "zwei"]},
    {"enum": ["<|box_start|>", "<|im_end|>", "\"quoted\"\n"]},
    {"const": "fixed"},
    {"const": {"nested": [1, 2.5, False]}},
    {"type": "string", "pattern": "^[a-f]{2}$"},
    {"type": "string", "pattern": "^(north|south)-[0-9]{1,3}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
)  # fmt: skip


def _objects(children: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    """With properties that must be there, and some that may."""

    def build(names: list[str], values: list[Schema], num_required: int) -> Schema:
        return {
            "type": "object",
            "properties": dict(zip(names, values, strict=False)),
            "required": names[:num_required],
            "additionalProperties": False,
        }

    names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)
    return st.builds(build, names, st.lists(children, min_size=3, max_size=3), st.integers(0, 3))


def _maps(children: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return children.map(
        lambda value: {
            "type": "object",
            "properties": {"kind": {"const": "map"}},
            "required": ["kind"],
            "patternProperties": {"^[a-c]{1,2}$": value},
            "additionalProperties": False,
            "maxProperties": 3,
        }
    )


def _arrays(children: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return children.map(lambda items: {"type": "array", "items": items, "minItems": 1, "maxItems": 2})


def _tuples(children: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.lists(children, min_size=1, max_size=2).map(
        lambda items: {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    )


def _unions(children: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.lists(children, min_size=1, max_size=2).map(lambda parts: {"anyOf": parts})


def _nest(children: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.one_of(
        _objects(children), _arrays(children), _tuples(children), _unions(children), _maps(children)
    )


def _with_definitions(schema: Schema, inner: Schema) -> Schema:
    """The schema behind references."""
    return {
        "$defs": {"part": inner, "whole": schema},
        "type": "object",
        "properties": {"first": {"$ref": "#/$defs/whole"}, "second": {"$ref": "#/$defs/part"}},
        "required": ["first"],
        "additionalProperties": False,
    }


_plain: st.SearchStrategy[Schema] = st.recursive(st.sampled_from(SCALARS), _nest, max_leaves=4)
schemas: st.SearchStrategy[Schema] = st.one_of(
    _plain, _plain, _plain, st.builds(_with_definitions, _plain, st.sampled_from(SCALARS))
)
"""One in four has references."""
