import json
import random

import pytest

from export.errors import UserError
from validate.run.validation import run_validation
from validate.tasks.quality import compare_quality, is_right, load_tasks
from validate.tasks.runs import MAX_NEW_TOKENS, load_task_set, reference_answers


def test_equal_answers_make_no_difference_and_leave_some_doubt():
    quality = compare_quality([True] * 80 + [False] * 20, [True] * 80 + [False] * 20)
    assert quality.reference_accuracy == quality.engine_accuracy == 0.8
    assert quality.difference == 0
    assert -0.03 < quality.interval[0] < 0 < quality.interval[1] < 0.03
    assert quality.gate.passed


def test_more_tasks_leave_less_doubt():
    widths = []
    for count in (20, 200, 2000):
        quality = compare_quality([True] * count, [True] * count)
        widths.append(quality.interval[1] - quality.interval[0])
    assert widths[0] > 5 * widths[1] > 25 * widths[2]


def test_a_clear_loss_fails_and_a_loss_by_chance_does_not():
    right = [True] * 200
    assert not compare_quality(right, [False] * 30 + [True] * 170).gate.passed
    assert compare_quality(right, [False] * 2 + [True] * 198).gate.passed
    assert compare_quality(right, [False] * 30 + [True] * 170, allowed_loss=0.2).gate.passed


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    """Pairs with a known difference of -5 percent, drawn 400 times: about 95 in 100 intervals should hold it."""
    generator = random.Random(7)
    covered = 0
    for _ in range(400):
        draws = [generator.random() for _ in range(150)]
        reference = [draw < 0.85 for draw in draws]
        engine = [draw < 0.75 or 0.90 < draw < 0.95 for draw in draws]
        low, high = compare_quality(reference, engine).interval
        covered += low <= -0.05 <= high
    assert 0.92 <= covered / 400 <= 0.99


@pytest.mark.parametrize(
    ("answer", "right"), [("Red.", True), (" red ", True), ("RED", True), ("reddish", False), ("", False)]
)
def test_an_answer_is_right_up_to_case_space_and_a_full_stop(answer, right):
    assert is_right(answer, "red") is right


def test_every_bad_line_is_named(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text(
        '{"prompt": "p", "answer": "a"}\n{"prompt": 3}\nno\n{"prompt": "p", "answer": "a", "picture": "x"}\n'
    )
    with pytest.raises(UserError) as refusal:
        load_tasks(path)
    for words in ("line 2: needs", "line 3: no JSON", "line 4: unknown keys picture"):
        assert words in str(refusal.value)
    path.write_text("\n")
    with pytest.raises(UserError, match="it is empty"):
        load_tasks(path)


@pytest.fixture(scope="module")
def task_set(exported, tmp_path_factory):
    """Questions whose expected answer is what the reference says, except for the last."""
    from export.models.qwen2_vl.model import load_reference
    from validate.reference.sessions import ReferenceDecoder, ReferenceVision

    path = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    prompts = ["What?", "How many of them are there?", "Which one?"]
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": "?"}) + "\n" for prompt in prompts))
    tasks = load_task_set(path, exported.bundle)
    model = load_reference(exported.bundle)
    sessions = ReferenceVision(model), ReferenceDecoder(model, 1, tasks.longest_context)
    said = [tasks._answer(inputs, *sessions, model.config) for inputs in tasks.inputs]
    lines = [{"prompt": prompt, "answer": answer} for prompt, answer in zip(prompts, said, strict=True)]
    lines[-1]["answer"] = "something else"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load_task_set(path, exported.bundle)


def test_the_reference_is_asked_through_the_runtime(task_set, exported):
    assert reference_answers(task_set, exported.bundle) == [True, True, False]
    assert task_set.generation.max_new_tokens == MAX_NEW_TOKENS
    assert not task_set.generation.do_sample


def test_a_report_holds_both_accuracies(task_set, exported, tmp_path, progress):
    from dataclasses import replace

    plan = replace(exported.plan, tasks=task_set)
    report = run_validation(plan, exported.workspace(tmp_path), progress)
    quality = report.task_quality
    assert quality is not None
    assert quality.num_tasks == 3
    assert quality.reference_accuracy == quality.engine_accuracy == pytest.approx(2 / 3)
    assert quality.gate in report.gates
    assert "3 tasks: reference 66.7%, engine 66.7%" in quality.sentence()
