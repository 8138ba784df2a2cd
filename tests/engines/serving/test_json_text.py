import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.serving import json_text
from engines.serving.json_text import parse_bounded_json
from export.errors import UserError

LIMITS = {"max_bytes": 1 << 24, "max_text_bytes": 1 << 22, "max_structure_bytes": 1 << 20}


def parsed(text, **limits):
    data = text if isinstance(text, bytes) else text.encode()
    return parse_bounded_json(data, "messages", **{**LIMITS, **limits})


def refusal(text, **limits):
    with pytest.raises(UserError) as caught:
        parsed(text, **limits)
    return str(caught.value)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=40) | st.text('ab/\\"\n\u00e9', max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)


@given(value=values, is_ascii=st.booleans(), escapes_slashes=st.booleans())
def test_json_means_what_the_standard_library_says_with_every_string_taken_out(
    value, is_ascii, escapes_slashes
):
    text = json.dumps(value, ensure_ascii=is_ascii)
    if escapes_slashes:  # as PHP writes them
        text = text.replace("/", "\\/")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "_LONG_STRING_BYTES", 0)
        assert parsed(text) == json.loads(text) == value


@pytest.mark.parametrize(
    "text", ['["a\nb"]', '["\x00"]', '["a', '["\\"]', '["\\x"]', '"', "[", '{"a"}', '["a" "b"]']
)
def test_what_is_no_json_is_refused_with_every_string_taken_out(monkeypatch, text):
    monkeypatch.setattr(json_text, "_LONG_STRING_BYTES", 0)
    assert "is not JSON" in refusal(text)


def test_a_string_that_is_not_utf_8_is_refused_however_long():
    assert "not UTF-8" in refusal(b'["' + b"\xff" * 100 + b'"]')
    assert "not UTF-8" in refusal(b'["' + b"\xff" * 100_000 + b'"]')


def test_a_long_string_does_not_count_as_text_and_an_escaped_one_does():
    assert parsed(json.dumps(["A" * 100_000]), max_text_bytes=100) == ["A" * 100_000]
    assert "beside its pictures" in refusal(json.dumps(["\n" * 100_000]), max_text_bytes=100)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"[{'[],' * 1000}[]]", "outside of its strings"),
        (f"[{' ' * 1000}]", "outside of its strings"),
        (f"[{'0,' * 1000}0]", "outside of its strings"),
        (f'["a",{"9" * 1000}]', "outside of its strings"),
        ("[" + '"",' * 60 + '""]', "50 strings"),
        ('{"a": "' + "x" * 5000 + '"}', "has 5009 bytes"),
    ],
)
def test_each_limit_is_told(text, says):
    assert says in refusal(text, max_bytes=5000, max_structure_bytes=100)


@pytest.mark.parametrize("num_backslashes", [0, 1, 2, 3, 62, 63, 64, 65, 128, 129, 1000, 1001])
@pytest.mark.parametrize("before", ["", "x", "x" * 70])
def test_a_string_ends_at_the_mark_that_no_backslash_takes(monkeypatch, num_backslashes, before):
    monkeypatch.setattr(json_text, "_LONG_STRING_BYTES", 0)
    text = json.dumps([before + "\\" * num_backslashes + '"' + "z", "second"])
    assert parsed(text) == json.loads(text)
    ended = '["' + before + "\\" * (2 * num_backslashes) + '", "second"]'
    assert parsed(ended) == json.loads(ended)


def test_quotation_marks_in_many_strings_are_counted_together():
    """Each of them costs a step; the work is bounded by what all texts may hold, not by each of their strings."""
    text = "[" + ",".join(['"' + '\\"' * 900 + '"'] * 1000) + "]"
    started = time.thread_time()
    assert "more than 10000 bytes beside its pictures" in refusal(text, max_text_bytes=10_000)
    assert time.thread_time() - started < 0.1
