from dataclasses import replace

import pytest

from examples.tiny.plan import COPYING, LOOKING, MIXTURE, STAGES, Plan
from examples.tiny.tasks import GENERATORS, TASKS

PLAN = Plan(tuple(replace(stage, steps=10, samples=6) for stage in STAGES))


def test_stages_follow_one_another_in_the_paper_s_order():
    names = [PLAN.at(step)[0].name for step in range(PLAN.steps)]
    assert list(dict.fromkeys(names)) == ["text", "1 vision", "2 all", "3 instruct"]
    with pytest.raises(IndexError, match="beyond"):
        PLAN.at(PLAN.steps)


def test_the_warm_up_is_told_what_pictures_show_and_the_vision_encoder_learns_to_say_it():
    drawn = {stage.name: stage.drawn for stage in STAGES}
    learns = {stage.name: stage.learns for stage in STAGES}
    assert drawn == {"text": False, "1 vision": True, "2 all": True, "3 instruct": True}
    assert learns == {
        "text": ("model.",),
        "1 vision": ("visual.",),
        "2 all": ("visual.", "model."),
        "3 instruct": ("model.",),
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_s_rate_warms_up_and_falls_towards_its_end(stage):
    rates = [stage.rate_at(step) for step in range(stage.steps)]
    assert rates[0] < max(rates) == pytest.approx(stage.rate, rel=0.2)
    assert stage.final_rate <= rates[-1] <= stage.final_rate + stage.rate * 0.1


def test_the_learning_rate_ends_at_zero():
    assert STAGES[-1].final_rate == 0


def test_a_scaled_plan_has_the_same_stages():
    assert [stage.steps for stage in PLAN.scaled(0.5).stages] == [5] * len(STAGES)
    assert all(stage.steps == 1 for stage in PLAN.scaled(0.001).stages)


def test_one_stage_can_run_alone():
    assert {stage.name for stage in PLAN.only("text").stages} == {"text"}
    assert PLAN.only("1 vision").steps == 10


def test_seed_and_step_decide_the_samples():
    def answers(step, seed=0):
        return [sample.answer for sample in replace(PLAN, seed=seed).samples(step)]

    assert answers(30) == answers(30)
    assert all(answers(30) != other for other in (answers(31), answers(30, seed=1)))


def test_mixtures_are_shares_of_the_tasks():
    assert set(GENERATORS) - {"page"} == set(MIXTURE) > set(TASKS) > set(COPYING)
    for mixture in (MIXTURE, COPYING, LOOKING):
        assert sum(mixture.values()) == pytest.approx(1)
