from dataclasses import replace
from typing import Any

import pytest

from engines.backends import backend_of
from engines.backends.known_issues import Situation
from engines.backends.tensorrt.known_issues import RTX_ISSUES, TENSORRT_ISSUES
from engines.open import known_issues_of
from export.records.engine_record import EngineRecord

FINE = Situation(
    version="11.4.0.106",
    sms=(89,),
    limits={"max_batch": 8, "max_context": 4096},
    dtype="bfloat16",
    has_plugins=False,
)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"version": "11.1.0.5", "has_plugins": True}, "ahead-of-time-plugins-leak"),
        ({"version": "11.2.1.2", "has_plugins": True}, "ahead-of-time-plugins-leak"),
        ({"version": "11.4.0.106", "has_plugins": True}, "ahead-of-time-plugins-leak"),
        *(({"sms": (sm,)}, "native-attention-with-lengths") for sm in (86, 120, 121)),
        ({"version": "11.2", "dtype": "float16"}, "float16-attention-with-lengths"),
        (
            {"version": "10.13.3.9", "sms": (110,), "limits": {"max_batch": 1, "max_context": 4096}},
            "horizontal-fusion-at-batch-1",
        ),
        (
            {"sms": (121,), "dtype": "float16", "limits": {"max_batch": 8, "max_context": 16384}},
            "kv-decode-at-16384",
        ),
        (
            {
                "target": "tensorrt-rtx",
                "version": "1.7",
                "sms": (121,),
                "limits": {"max_batch": 8, "max_context": 32768},
            },
            "kv-decode-at-16384",
        ),
        ({"version": "10.16.1", "sms": (89, 120)}, "fused-attention-on-sm120"),
        ({"target": "tensorrt-rtx", "version": "1.7", "sms": (90,)}, "rtx-on-data-center-gpus"),
    ],
)
def test_a_known_issue_is_found_by_name(changes: dict[str, Any], name: str) -> None:
    target = changes.get("target", "tensorrt")
    situation = replace(FINE, **{key: value for key, value in changes.items() if key != "target"})
    [issue] = backend_of(target).known_issues(situation)
    assert issue.name == name
    assert issue.source in issue.sentence()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"version": "11.1"},
        {"version": "10.13.3.9", "has_plugins": True},
        {"version": "11.3", "dtype": "float16"},
        {"version": "10.16.2", "sms": (86,)},
        {"version": "10.13.3.9", "sms": (110,)},
        {"sms": (121,), "dtype": "float32"},
        {"version": "10.16.1", "sms": (120,), "dtype": "float32"},
    ],
)
def test_a_situation_that_differs_in_one_condition_is_not_warned_about(changes: dict[str, Any]) -> None:
    assert backend_of("tensorrt").known_issues(replace(FINE, **changes)) == []


def test_every_issue_has_a_name_of_its_own_and_a_source() -> None:
    for issues in (TENSORRT_ISSUES, RTX_ISSUES):
        assert len({issue.name for issue in issues}) == len(issues)
        assert all(issue.source.startswith("https://") for issue in issues)


def test_an_engine_is_judged_by_what_it_was_built_with() -> None:
    record = EngineRecord(
        key="k",
        inputs={"tensorrt-cu13": "11.2.1.2"},
        target="tensorrt",
        sms=(89,),
        limits={"max_batch": 8, "max_context": 4096},
        plugins=("qv::QvRotary/1",),
        driver=None,
        created="now",
        seconds=1.0,
        files=(),
        facts={},
    )
    assert [issue.name for issue in known_issues_of(record, "bfloat16")] == ["ahead-of-time-plugins-leak"]
    assert known_issues_of(replace(record, plugins=()), "bfloat16") == []
