"""Ranks that are threads: what each gets from sums and gathers, and from a rank that leaves."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engines.parallel.communicator import Alone, GroupError
from engines.parallel.threads import thread_group


def on_every_rank(group, work):
    with ThreadPoolExecutor(len(group)) as pool:
        return list(pool.map(work, group))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_sum_is_the_same_bits_on_every_rank(size):
    given = np.random.default_rng(size).standard_normal((size, 5, 7)).astype(np.float32)

    def reduce(end):
        values = given[end.rank].copy()
        for _ in range(20):
            values[...] = given[end.rank]
            end.all_reduce(values)
        return values

    sums = on_every_rank(thread_group(size), reduce)
    assert all(one.tobytes() == sums[0].tobytes() for one in sums)
    np.testing.assert_allclose(sums[0], given.sum(axis=0), rtol=1e-5, atol=1e-6)


def test_a_gather_gives_the_ranks_in_order():
    def gather(end):
        return end.all_gather(np.full((2, 3), end.rank, np.int64))

    for gathered in on_every_rank(thread_group(3), gather):
        assert gathered.dtype == np.int64
        np.testing.assert_array_equal(gathered, np.arange(3)[:, None, None] * np.ones((1, 2, 3)))


def test_a_rank_that_leaves_ends_the_others_calls_and_the_group_can_go_on():
    group = thread_group(3)

    def work(end):
        if end.rank == 1:
            end.leave()
            return "left"
        with pytest.raises(GroupError, match="another of the 3 ranks"):
            end.all_reduce(np.zeros(4, np.float32))
        return "told"

    assert on_every_rank(group, work) == ["told", "left", "told"]
    group[0].rejoin()
    assert [
        one.tolist() for one in on_every_rank(group, lambda end: end.all_gather(np.array([end.rank])))
    ] == [[[0], [1], [2]]] * 3


def test_a_group_of_one_has_nothing_to_say():
    values = np.arange(3.0)
    Alone().all_reduce(values)
    np.testing.assert_array_equal(values, np.arange(3.0))
    np.testing.assert_array_equal(Alone().all_gather(values), np.arange(3.0)[None])
