from dataclasses import replace

import numpy as np
import pytest

from tests.support.mrope_rule import position_ids_by_the_paper
from validate.cases.builtin import Case, Image, Profile, Text, Video, make_level
from validate.cases.prompts import (
    image_from_patches,
    options_that_hold,
    pack_patches,
    prepare_case,
    visual_token_ids,
)

MIXED = Case("mixed", ((Text(3), Image(4, 6), Text(2), Video(3, 4, 4), Text(5)), (Text(7),)))


def test_a_case_is_the_same_each_time_and_unlike_others(exported):
    first, again = (prepare_case(MIXED, exported.config, exported.plan.image_settings) for _ in range(2))
    assert first.digest() == again.digest()
    other = prepare_case(Case("other", MIXED.prompts), exported.config, exported.plan.image_settings)
    assert first.digest() != other.digest()


def test_a_case_in_chunks_has_the_prompts_of_the_case_at_once(exported):
    chunked = Case("mixed_in_chunks", MIXED.prompts, prefill_chunk_tokens=4)
    first, second = (
        prepare_case(case, exported.config, exported.plan.image_settings) for case in (MIXED, chunked)
    )
    assert np.array_equal(first.prompts[0].token_ids, second.prompts[0].token_ids)
    assert np.array_equal(first.prompts[0].patches, second.prompts[0].patches)


@pytest.mark.parametrize("level", ["standard", "exhaustive"])
def test_position_ids_follow_the_paper_in_every_case(exported, level):
    """By the rule written apart, in plain loops: the reference's positions are not trusted either."""
    for case in make_level(level, Profile()).cases:
        prepared = prepare_case(case, exported.config, exported.plan.image_settings)
        for prompt in prepared.prompts:
            image, video = visual_token_ids(exported.config)
            kinds = ["i" if token == image else "v" if token == video else "t" for token in prompt.token_ids]
            positions, delta = position_ids_by_the_paper(kinds, prompt.grids)
            assert np.array_equal(prompt.position_ids, positions), case.name
            assert prompt.position_delta == delta


def test_an_engine_of_the_named_options_takes_every_case_but_those_past_its_edge(exported):
    """As a default engine of 2B: four segments."""
    narrow = Profile(
        max_context_tokens=1024, max_patches=2048, max_batch=2, max_prompt_tokens=300, max_segments=4
    )
    level = make_level("standard", narrow)
    cases = [prepare_case(case, exported.config, exported.plan.image_settings) for case in level.cases]
    options = options_that_hold(cases, narrow, level.num_decode_steps)
    assert set(options) == {"max_batch", "max_prompt_tokens", "max_segments"}
    wide = Profile(
        1024, 2048, options["max_batch"] - 1, options["max_prompt_tokens"], options["max_segments"]
    )
    outside = {case.name for case in cases if case.problem(wide, level.num_decode_steps)}
    assert outside == {"one_past_context_limit", "one_past_largest_image"}
    assert options_that_hold(cases, wide, level.num_decode_steps) == {}
    for name, less in (
        ("max_segments", options["max_segments"] - 1),
        ("max_batch", options["max_batch"] - 2),
    ):
        missed = [
            case for case in cases if case.problem(replace(wide, **{name: less}), level.num_decode_steps)
        ]
        assert len(missed) > 2, name


def test_a_picture_comes_back_from_its_patches(exported):
    settings = exported.plan.image_settings
    prepared = prepare_case(Case("one", ((Image(4, 6),),)), exported.config, settings)
    picture = image_from_patches(prepared.prompts[0].patches, (1, 4, 6), settings)
    assert picture.shape == (56, 84, 3)
    # The patch in row 1, column 2 stands in the second 2 x 2 block, third place: 4 + 2.
    patch = prepared.prompts[0].patches[6].reshape(3, 2, 14, 14)[:, 0]
    mean, std = (np.array(values)[:, None, None] for values in (settings.image_mean, settings.image_std))
    expected = np.rint((patch * std + mean) * 255).transpose(1, 2, 0)
    assert np.array_equal(picture[14:28, 28:42], expected)


def test_packing_joins_patches_and_offsets(exported):
    prepared = prepare_case(MIXED, exported.config, exported.plan.image_settings)
    packed = pack_patches([prepared.prompts[0], prepared.prompts[0]])
    assert len(packed.patches) == packed.positions.shape[1] == 2 * (24 + 48)
    assert packed.cu_seqlens.tolist() == [0, 24, 40, 56, 72, 96, 112, 128, 144]
