"""The fuzzer's judge, given what a bad server would send."""

import json
from random import Random

import pytest

from benchmarks.fuzz_serving import judge
from benchmarks.request_grammar import Case, random_case
from engines.serving.triton.interface import CHAT_INPUTS
from export.processor.media.budget import VIDEO_KEYS

CASE = Case("mark00000000000a", {}, b"{}", is_grpc=False, leaves_after=None)
ANSWER = {"text": "2", "finish_reason": "stop", "usage": "{}"}


def test_an_answer_and_an_error_are_fine():
    assert judge(CASE, [{**ANSWER, "finish_reason": ""}, ANSWER]) == ("answered", [])
    assert judge(CASE, [{"error": "mark00000000000a is no role"}]) == ("refused", [])


@pytest.mark.parametrize(
    ("received", "says"),
    [
        ([{**ANSWER, "text": "mark00000000000b"}], "holds mark00000000000b"),
        ([{"error": "unknown role mark00000000000b"}], "holds mark00000000000b"),
        ([{"error": "a fault of the server; its log says more"}], "a fault of the server"),
        ([{"error": "Traceback (most recent call last)"}], "Traceback"),
        ([{**ANSWER, "finish_reason": ""}], "ended with"),
        ([], "ended with"),
    ],
)
def test_what_a_bad_server_would_send_is_a_finding(received, says):
    _, [finding] = judge(CASE, received)
    assert says in finding


def test_a_client_that_left_needs_no_end():
    assert judge(Case("a", {}, b"", is_grpc=False, leaves_after=1), []) == ("left", [])


def test_a_seed_gives_the_same_requests_again_and_another_gives_others():
    first, again, other = ([random_case(Random(f"{seed} {n}")) for n in range(20)] for seed in (0, 0, 1))
    assert first == again
    assert {case.body for case in first}.isdisjoint(case.body for case in other)


def test_the_grammar_makes_right_requests_and_wrong_ones_over_both_protocols():
    cases = [random_case(Random(number)) for number in range(200)]
    assert 20 < sum(case.is_grpc for case in cases) < 180
    assert 5 < sum(case.leaves_after is not None for case in cases) < 60
    assert 100 < sum(_is_json(case.body) for case in cases) < 200


def test_every_input_of_the_model_and_every_budget_of_a_part_is_asked_for():
    cases = [random_case(Random(number)) for number in range(800)]
    asked = {name for case in cases for name in case.fields}
    assert {tensor.name for tensor in CHAT_INPUTS} <= asked
    bodies = b"".join(case.body for case in cases)
    told = (*VIDEO_KEYS, "detail", "image_url", "input_image", "video_url", "developer", "tool")
    assert [name for name in told if name.encode() not in bodies] == []


def _is_json(body):
    try:
        json.loads(body)
    except ValueError:
        return False
    return True
