"""Twenty hostile requests at once on a real server: memory, slots, errors in time, and what other clients wait."""

import os

import pytest

from benchmarks.hostile_requests import hostile_requests, storm
from benchmarks.hostile_storm import MAX_MEMORY_BYTES, Ended, StormResult, one_storm
from tests.support.serve import running_serve


def result(**changes):
    quick = Ended("a kind", 400, 0.1, "refused")
    usual = {
        "ended": [quick],
        "alone_waits": ([0.02], [0.03]),
        "text_waits": [0.1, 0.2],
        "picture_waits": [0.1, 0.2],
        "idle_bytes": 10**9,
        "peak_bytes": 2 * 10**9,
        "slots_used": 0.0,
    }
    return StormResult(**{**usual, **changes})


def test_a_storm_within_its_bounds_has_no_findings():
    assert result().findings() == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"text_waits": [0.1, 0.6]}, "a text waited 0.60 s"),
        ({"picture_waits": [0.7]}, "a picture waited 0.70 s"),
        ({"ended": [Ended("a kind", 400, 3.6, "late")]}, "after 3.60 s"),
        ({"ended": [Ended("a kind", 500, 0.1, "fault")]}, "status 500"),
        ({"peak_bytes": 10**9 + MAX_MEMORY_BYTES + 1}, "memory rose by 1500 MB"),
        ({"slots_used": 2.0}, "2 slots did not come back"),
    ],
)
def test_each_bound_that_is_passed_is_told(changes, says):
    assert any(says in finding for finding in result(**changes).findings())


def test_a_busy_machine_has_that_much_more_time():
    late = result(text_waits=[1.4], ended=[Ended("a kind", 400, 4.4, "late")])
    assert len(late.findings()) == 2
    assert late.findings(slowness=3.0) == []


def test_a_seed_gives_the_same_storm_and_all_kinds_come_in_their_turn():
    assert storm(1, 20) == storm(1, 20) != storm(2, 20)
    assert set(storm(3, len(hostile_requests()))) == set(hostile_requests())


@pytest.mark.slow
def test_twenty_hostile_requests_at_once_harm_nobody(tmp_path):
    from benchmarks.hostile_storm import TINY
    from export.exporter import export_checkpoint

    export_checkpoint(TINY, tmp_path / "bundle")
    with running_serve(tmp_path / "bundle") as server:
        found = one_storm(server, storm(0, 20))
    # Here the hostile clients and the honest ones share the server's cores.
    slowness = max(2.0, 2 * os.getloadavg()[0] / len(os.sched_getaffinity(0)))
    assert len(found.ended) == 20
    assert found.findings(slowness) == []
