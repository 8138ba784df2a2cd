import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.errors import UserError
from export.records.engine_record import EngineRecord
from export.records.manifest import FileRecord, content_key

INPUTS = {"bundle": "0123", "target": "tensorrt-rtx", "sm": "80,89", "limit max_batch": "8"}
RECORD = EngineRecord(
    key=content_key(INPUTS),
    inputs=INPUTS,
    target="tensorrt-rtx",
    sms=(80, 89),
    limits={"max_batch": 8},
    plugins=("qv::QvRotary/1",),
    driver=None,
    created="2026-01-01T00:00:00+00:00",
    seconds=1.5,
    files=(FileRecord("vision.engine", 9, "0" * 64),),
    facts={"vision": {"layers": []}},
)
FILE = {"name": "vision.engine", "bytes": 9, "sha256": "0" * 64, "fingerprint": None}


def test_a_record_survives_json_and_contradicts_itself_nowhere() -> None:
    assert EngineRecord.from_json(RECORD.to_json()) == RECORD
    assert RECORD.contradictions() == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"key": 5}, "key must be a string"),
        ({"inputs": {"bundle": 1}}, "inputs must be an object of strings"),
        ({"target": {}}, "target must be a name"),
        ({"sms": "89"}, "sms must be a list of architectures"),
        ({"sms": [True]}, "sms must be a list of architectures"),
        ({"sms": [1e308]}, "sms must be a list of architectures"),
        ({"limits": {"max_batch": "8"}}, "limits must be an object of numbers"),
        ({"limits": {"max_batch": -1}}, "limits must be an object of numbers"),
        ({"plugins": [{}]}, "plugins must be a list of names"),
        ({"driver": 580}, "driver must be a version or null"),
        ({"seconds": "1"}, "seconds must be seconds"),
        ({"files": {}}, "files must be a list of files"),
        ({"files": [{**FILE, "name": "../vision.engine"}]}, "files must be a list of files"),
        ({"files": [{**FILE, "name": "a/b"}]}, "files must be a list of files"),
        ({"files": [{**FILE, "name": 5}]}, "files must be a list of files"),
        ({"files": [{**FILE, "sha256": None}]}, "files must be a list of files"),
        ({"files": [{**FILE, "bytes": -1}]}, "files must be a list of files"),
        ({"files": [{**FILE, "more": 1}]}, "files must be a list of files"),
        ({"facts": {"vision": []}}, "facts must be an object by graph"),
        ({"facts": {"../../secret": {}}}, "facts must be an object by graph"),
        ({"colour": "red"}, "unknown keys colour"),
    ],
)
def test_a_value_of_another_type_is_named(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        EngineRecord.from_json(json.dumps({**json.loads(RECORD.to_json()), **changes}))


def test_all_values_of_other_types_are_told_at_once() -> None:
    content = {**json.loads(RECORD.to_json()), "key": 1, "sms": 2, "files": 3}
    with pytest.raises(UserError, match=r"key must .*; sms must .*; files must "):
        EngineRecord.from_json(json.dumps(content))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(json.loads(RECORD.to_json()))), JSON)
def test_any_value_in_any_place_gives_a_record_or_a_message(name: str, value: Any) -> None:
    text = json.dumps({**json.loads(RECORD.to_json()), name: value})
    try:
        record = EngineRecord.from_json(text)
    except UserError:
        return
    assert isinstance(record.contradictions(), list)
    assert record.to_json()
