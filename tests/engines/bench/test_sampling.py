"""Samples of a call, their median and quartiles."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.bench.sampling import Effort, sampled_seconds, spread_of


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30))
def test_median_and_quartiles_are_numpys(values):
    spread = spread_of(values)
    expected = np.quantile(values, [0.5, 0.25, 0.75])
    assert [spread.median, spread.low, spread.high] == pytest.approx(expected)
    assert spread.median == pytest.approx(statistics.median(values))


def test_a_call_is_warmed_up_and_made_three_times_at_least():
    calls = []
    assert sampled_seconds(lambda: calls.append(1), Effort(seconds=0)).num_samples == 3
    assert len(calls) == 4
