import math

import pytest

from export.files.checks import MAX_LEVELS, is_count, is_number, is_too_deep, is_whole


@pytest.mark.parametrize("value", [True, False, None, "1", [1], math.inf, -math.inf, math.nan])
def test_what_is_no_number_is_none(value):
    assert not is_number(value)
    assert not is_whole(value)
    assert not is_count(value)


def test_a_whole_number_is_written_as_one():
    assert is_whole(-3)
    assert not is_whole(1.0)
    assert is_number(1.0)
    assert is_whole(10**400)
    assert not is_number(10**400)


def test_a_count_fits_64_bits():
    assert [is_count(value) for value in (-1, 0, 2**63 - 1, 2**63)] == [False, True, True, False]


@pytest.mark.parametrize(
    "kind", [lambda inner: [inner], lambda inner: {"a": inner}, lambda inner: ("b", inner)]
)
def test_depth_is_counted_and_needs_no_stack(kind):
    def nested(levels):
        value = 1
        for _ in range(levels):
            value = kind(value)
        return value

    assert [is_too_deep(nested(levels)) for levels in (0, MAX_LEVELS, MAX_LEVELS + 1, 10_000)] == [
        False,
        False,
        True,
        True,
    ]
