from dataclasses import replace

import numpy as np
import pytest

from export.errors import UserError
from validate.gates.gates import GateResult, GateSettings, judge_case, noise_floors, worst_failures
from validate.records.metrics import compare_logits, compare_tensors
from validate.records.records import Measurement

RNG = np.random.default_rng(0)
EXPECTED = RNG.normal(size=(20, 64))
DIRECTION = RNG.normal(size=(20, 64))


def measurement(error):
    """A case whose values are off by `error`."""
    actual = EXPECTED + error * DIRECTION
    logits = compare_logits(actual, EXPECTED)
    tensors = {
        "visual_embeds": compare_tensors(actual, EXPECTED),
        "prefill_logits": logits,
        "decode_logits": logits,
    }
    return Measurement(tensors, ())


def judge(error, noise=1e-6, others=1e-6, **settings):
    """Of a case among others whose noise is `others`."""
    floors = noise_floors([measurement(others)])
    return judge_case("case", measurement(error), measurement(noise), floors, GateSettings(**settings))


def test_error_up_to_the_multiple_of_noise_passes_and_beyond_it_fails():
    assert not worst_failures(judge(3.9e-6))
    beyond = {gate.gate for gate in worst_failures(judge(4.1e-6))}
    assert {"visual_embeds.worst_token_error", "decode_logits.relative_l2"} <= beyond
    assert not worst_failures(judge(7.9e-6, multiple=8.0))


def test_divergence_of_predictions_may_grow_with_the_square():
    [gate] = [gate for gate in judge(2e-6) if gate.gate == "decode_logits.worst_kl"]
    assert gate.noise is not None
    assert gate.limit == pytest.approx(16 * gate.noise)
    assert gate.ratio == pytest.approx(4 / 16, rel=0.01)


def test_a_case_with_lucky_noise_is_judged_by_that_of_the_others():
    assert not worst_failures(judge(3e-6, noise=1e-9))
    assert worst_failures(judge(3e-6, noise=1e-9, others=1e-9))


def test_a_worst_token_is_granted_the_loudest_one_of_any_case_and_a_mean_is_not():
    floors = noise_floors([measurement(error) for error in (1e-6, 1e-6, 1e-5)])
    results = judge_case("case", measurement(2e-5), measurement(1e-6), floors, GateSettings())
    judged = {gate.gate: gate.passed for gate in results}
    assert judged["decode_logits.worst_token_error"]
    assert judged["decode_logits.worst_kl"]
    assert not judged["decode_logits.relative_l2"]


def test_a_near_tie_may_turn_and_a_clear_choice_may_not():
    expected = EXPECTED.copy()
    best = expected[0].argmax()
    for margin, passes in ((5e-6, True), (1e-3, False)):
        actual = expected.copy()
        actual[0, (best + 1) % 64] = expected[0, best] + 1e-9
        runner_up = expected.copy()
        runner_up[0, (best + 1) % 64] = expected[0, best] - margin
        measured = Measurement({"decode_logits": compare_logits(actual, runner_up)}, ())
        noise = Measurement({"decode_logits": compare_logits(expected + 1e-6 * DIRECTION, expected)}, ())
        [gate] = [
            gate
            for gate in judge_case("case", measured, noise, noise_floors([noise]), GateSettings())
            if gate.gate == "decode_logits.worst_lost_margin"
        ]
        assert gate.value == pytest.approx(margin, rel=1e-3)
        assert gate.passed is passes


def test_values_that_are_not_finite_fail_by_name():
    broken = EXPECTED.copy()
    broken[3, 5] = np.nan
    measured = Measurement({"prefill_logits": compare_logits(broken, EXPECTED)}, ())
    results = judge_case(
        "case", measured, measurement(1e-6), noise_floors([measurement(1e-6)]), GateSettings()
    )
    assert "prefill_logits.finite" in {gate.gate for gate in worst_failures(results)}


def test_failures_come_worst_first_and_what_raised_before_all():
    gates = [
        GateResult("a", "x", passed=False, value=2.0, limit=1.0),
        GateResult("b", "x", passed=False, value=None, limit=None),
        GateResult("c", "x", passed=True, value=0.5, limit=1.0),
        GateResult("d", "x", passed=False, value=9.0, limit=1.0),
    ]
    assert [gate.gate for gate in worst_failures(gates)] == ["b", "d", "a"]


def test_a_limit_of_zero_has_a_ratio():
    gate = GateResult("exact", "x", passed=True, value=0.0, limit=0.0)
    assert gate.ratio == 0
    assert replace(gate, value=1e-30).ratio == np.inf


def test_a_committed_file_overrides_limits(tmp_path):
    path = tmp_path / "gates.toml"
    path.write_text('multiple = 2.5\n[limits]\n"visual_embeds.worst_token_error" = 0.01\n')
    settings = GateSettings.from_toml(path)
    assert settings == GateSettings(2.5, {"visual_embeds.worst_token_error": 0.01})
    results = judge_case(
        "case", measurement(1e-3), measurement(1e-6), noise_floors([measurement(1e-6)]), settings
    )
    by_name = {gate.gate: gate for gate in results}
    assert by_name["visual_embeds.worst_token_error"].passed
    assert not by_name["visual_embeds.relative_l2"].passed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("multiple = 0", ["multiple must be a positive number"]),
        ("multiple = true", ["multiple must be a positive number"]),
        (
            "factor = 3\n[limits]\nkl = 1",
            ["unknown key 'factor'", "unknown gate 'kl'", "visual_embeds.relative_l2"],
        ),
        ("limits = 3", ["limits must be a table"]),
        ("[limits", ["cannot be read as TOML"]),
    ],
)
def test_a_bad_file_is_refused_with_all_its_problems(tmp_path, text, words):
    path = tmp_path / "gates.toml"
    path.write_text(text)
    with pytest.raises(UserError) as refusal:
        GateSettings.from_toml(path)
    for word in words:
        assert word in str(refusal.value)
