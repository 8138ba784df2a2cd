from examples.tiny.plan import EASY_MIXTURE, MIXTURE, Plan
from examples.tiny.tasks import TASKS

PLAN = Plan(
    steps=100,
    samples_per_step=12,
    text_until=10,
    vision_until=20,
    easiest_until=30,
    hardest_from=60,
    decay=0.2,
)


def test_stages_follow_one_another():
    stages = [PLAN.stage(step) for step in range(100)]
    assert list(dict.fromkeys(stages)) == ["text", "1 vision", "2 all", "3 instruct"]
    assert [stages.index(name) for name in dict.fromkeys(stages)] == [0, 10, 20, 90]


def test_difficulty_grows_and_the_rate_falls_to_zero():
    levels = [PLAN.level(step) for step in range(10, 100)]
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (0, 1)
    assert PLAN.rate(0) < PLAN.rate(40) < PLAN.rate(79) == 1
    assert 0 < PLAN.rate(99) < 0.06


def test_the_warm_up_asks_about_words_and_later_stages_about_pictures():
    assert all(not sample.media and sample.in_words == "" for sample in PLAN.samples(0))
    assert all(sample.media for sample in PLAN.samples(10))


def test_seed_step_and_rank_decide_the_samples():
    def answers(*arguments):
        return [sample.answer for sample in PLAN.samples(*arguments)]

    assert answers(70) == answers(70, 0)
    assert all(answers(70) != other for other in (answers(71), answers(70, 1)))


def test_going_on_skips_the_first_stages():
    plan = PLAN.going_on()
    assert plan.stage(0) == "2 all"
    assert (plan.level(0), plan.level(60)) == (0, 1)


def test_every_task_has_its_share():
    for mixture in (MIXTURE, EASY_MIXTURE):
        assert set(mixture) == set(TASKS)
        assert abs(sum(mixture.values()) - 1) < 1e-9
