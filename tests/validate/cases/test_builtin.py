import subprocess
import sys

import pytest

from export.records.verdicts import LEVELS
from validate.cases.builtin import (
    Image,
    Profile,
    Text,
    Video,
    largest_grid,
    make_level,
    num_patches,
    num_tokens,
    outside_profile,
)

PROFILES = (Profile(), Profile(256, 256, 2), Profile(4096, 16384, 8))


def problem(case, level, profile):
    lengths = [num_tokens(prompt) for prompt in case.prompts]
    patches = sum(num_patches(prompt) for prompt in case.prompts)
    return outside_profile(profile, lengths, patches, level.num_decode_steps)


def test_cases_metrics_gates_and_report_import_no_torch():
    modules = (
        "bisect.probes",
        "bisect.search",
        "cases.builtin",
        "gates.gates",
        "records.golden",
        "records.metrics",
        "records.records",
        "report.render",
        "report.report",
        "run",
        "self_test.mutations",
    )
    code = (
        "".join(f"import validate.{module}\n" for module in modules)
        + "import sys\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("profile", PROFILES)
def test_each_level_holds_the_one_before(profile):
    names = [[case.name for case in make_level(level, profile).cases] for level in LEVELS]
    assert names[0] == names[1][: len(names[0])]
    assert names[1] == names[2][: len(names[1])]
    assert len(names[2]) == len(set(names[2]))


@pytest.mark.parametrize("profile", PROFILES)
def test_only_the_cases_past_the_edge_lie_outside(profile):
    level = make_level("standard", profile)
    outside = {case.name for case in level.cases if problem(case, level, profile)}
    assert {"one_past_largest_image", "one_past_context_limit"} <= outside
    assert not {"largest_image", "context_limit"} & outside
    if profile == Profile():
        assert outside == {"one_past_largest_image", "one_past_context_limit"}


def test_the_context_limit_is_used_to_the_last_token():
    level = make_level("standard", Profile())
    case = next(case for case in level.cases if case.name == "context_limit")
    assert num_tokens(case.prompts[0]) + level.num_decode_steps == Profile().max_context_tokens


def test_forty_steps_follow_each_prompt_from_standard_on():
    assert [make_level(level, Profile()).num_decode_steps for level in LEVELS] == [8, 40, 40]


def test_aspect_ratios_reach_199_to_1():
    parts = [
        part for case in make_level("standard", Profile()).cases for prompt in case.prompts for part in prompt
    ]
    ratios = [part.width / part.height for part in parts if isinstance(part, Image)]
    assert max(ratios) == 199
    assert min(ratios) == 1 / 199


@pytest.mark.parametrize("max_patches", [4, 16, 100, 256, 1000, 2048, 16384, 65536])
def test_the_largest_grid_is_even_and_nearly_full(max_patches):
    height, width = largest_grid(max_patches)
    assert height % 2 == width % 2 == 0
    assert 0.7 * max_patches <= height * width <= max_patches
    assert (height + 2) * (width + 2) > max_patches


def test_what_is_outside_is_said_in_full():
    assert outside_profile(Profile(), [984], 2048, 40) is None
    said = outside_profile(Profile(), [985] * 5, 2052, 40)
    assert said is not None
    assert "985 tokens and 40 decode steps exceed the context of 1024" in said
    assert "2052 patches" in said
    assert "5 prompts" in said


def test_tokens_and_patches_of_parts():
    prompt = (Text(3), Image(4, 6), Video(2, 4, 4))
    assert num_tokens(prompt) == 3 + 6 + 8
    assert num_patches(prompt) == 24 + 32
