import json

import pytest

from export.errors import UserError
from export.records.verdicts import Verdict, all_verdicts, keep_verdict, read_verdicts


def verdict(**changes):
    fields = {
        "engine_key": "0123456789abcdef",
        "target": "onnxruntime",
        "level": "standard",
        "passed": True,
        "gates_digest": "00",
        "gate_kind": "default",
        "multiple": 4.0,
        "is_narrow": False,
        "num_gates": 353,
        "num_failed": 0,
        "bundle_key": "b",
        "digests": {"model.safetensors": "00"},
        "created": "2026-11-01T00:00:00+00:00",
        "versions": {},
    }
    return Verdict(**{**fields, **changes})


def test_a_later_quick_run_costs_no_standard_verdict(tmp_path):
    first, second = verdict(), verdict(level="quick", created="2026-11-02T00:00:00+00:00")
    keep_verdict(tmp_path, first)
    keep_verdict(tmp_path, second)
    assert read_verdicts(tmp_path, first.engine_key) == [second, first]


def test_a_newer_verdict_of_one_kind_takes_the_place_of_the_older(tmp_path):
    newer = verdict(passed=False, num_failed=1, created="2026-11-02T00:00:00+00:00")
    keep_verdict(tmp_path, verdict())
    keep_verdict(tmp_path, newer)
    assert read_verdicts(tmp_path, newer.engine_key) == [newer]


def test_engines_have_files_of_their_own(tmp_path):
    one, other = verdict(), verdict(engine_key="torch-float32", target="torch")
    keep_verdict(tmp_path, one)
    keep_verdict(tmp_path, other)
    assert all_verdicts(tmp_path) == [one, other]
    assert sorted(path.name for path in (tmp_path / "verdicts").iterdir()) == [
        f"{one.engine_key}.json",
        "torch-float32.json",
    ]


@pytest.mark.parametrize(
    ("changes", "is_proof"),
    [
        ({}, True),
        ({"level": "exhaustive", "gate_kind": "stricter"}, True),
        ({"level": "quick"}, False),
        ({"passed": False}, False),
        ({"gate_kind": "looser"}, False),
        ({"is_narrow": True}, False),
    ],
)
def test_a_proof_is_passed_thorough_and_by_gates_no_looser_than_usual(changes, is_proof):
    assert verdict(**changes).is_proof is is_proof


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"level": "none"}, "level must be one of quick, standard, exhaustive"),
        ({"passed": 1}, "passed must be one of True, False"),
        ({"gate_kind": []}, "gate_kind must be one of"),
        ({"num_gates": "many"}, "num_gates must be a number"),
        ({"digests": {"a": 1}}, "digests must be an object of strings"),
        ({"created": 5}, "created must be a string"),
        ({"surprise": 5}, "no verdict of this qv-export"),
    ],
)
def test_a_tampered_verdict_is_refused(tmp_path, change, says):
    kept = verdict()
    keep_verdict(tmp_path, kept)
    path = tmp_path / "verdicts" / f"{kept.engine_key}.json"
    content = json.loads(path.read_text())
    content["verdicts"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=says):
        read_verdicts(tmp_path, kept.engine_key)
    assert all_verdicts(tmp_path) == []


def test_a_verdict_of_another_engine_under_this_key_is_refused(tmp_path):
    kept = verdict()
    keep_verdict(tmp_path, kept)
    path = tmp_path / "verdicts" / f"{kept.engine_key}.json"
    path.rename(path.with_name("fedcba9876543210.json"))
    with pytest.raises(UserError, match="another engine"):
        read_verdicts(tmp_path, "fedcba9876543210")


@pytest.mark.parametrize("key", ["../manifest", "", "a/b", ".hidden", "k" * 65])
def test_a_key_that_is_a_path_is_refused(tmp_path, key):
    with pytest.raises(UserError, match="no key of an engine"):
        read_verdicts(tmp_path, key)
