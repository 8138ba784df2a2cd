"""Default limits fit the card, and a plan says on which cards it fits."""

from dataclasses import replace
from functools import partial

import pytest

from engines.backends import backend_of
from engines.sizing.cards import LEAST_SEGMENTS, card_lines, smallest_card
from engines.sizing.choose_limits import choose_limits
from engines.sizing.costs import plan_engine
from engines.sizing.limits import Limits
from export.checkpoint.config import config_from_json, load_config
from tests.engines.sizing.test_costs import ROOT, SEVEN_B, TWO_B


@pytest.fixture(params=[TWO_B, SEVEN_B], ids=["2b", "7b"])
def config(request):
    return config_from_json(request.param)


def costs_of(config, dtype="bfloat16"):
    return partial(backend_of("tensorrt-rtx").costs, config, dtype)


def chosen(config, given=None, card_gb=None):
    """The limits, and the memory that they take in GB."""
    limits = choose_limits(config, given or {}, {}, costs_of(config), card_gb)
    return limits, costs_of(config)(limits).device_bytes(limits) / 1e9


def test_2b_runs_by_default_on_a_card_of_8_gb_and_loses_nothing_but_segments_a_call():
    limits, needed_gb = chosen(config_from_json(TWO_B))
    assert needed_gb <= 8
    assert replace(limits, max_segments=Limits.max_segments) == Limits()


def test_by_default_a_model_fills_the_smallest_card_that_holds_it(config):
    limits, needed_gb = chosen(config)
    card = smallest_card(int(needed_gb * 1e9))
    assert card is not None
    least = replace(limits, max_segments=LEAST_SEGMENTS)
    assert smallest_card(costs_of(config)(least).device_bytes(least)) == card
    more = replace(limits, max_segments=2 * limits.max_segments)
    assert costs_of(config)(more).device_bytes(more) > card * 1e9


@pytest.mark.parametrize("card_gb", [12, 16, 24, 48])
def test_a_named_card_gets_as_many_segments_as_it_holds(card_gb):
    limits, needed_gb = chosen(config_from_json(TWO_B), card_gb=card_gb)
    assert needed_gb <= card_gb
    assert limits.max_segments > LEAST_SEGMENTS
    assert limits.max_segments == Limits.max_segments or (
        chosen(config_from_json(TWO_B), {"max_segments": 2 * limits.max_segments})[1] > card_gb
    )


def test_segments_that_were_given_stand_whatever_they_take(config):
    assert chosen(config, {"max_segments": 64}, card_gb=8)[0].max_segments == 64


def test_a_small_model_and_a_target_without_device_memory_keep_every_segment():
    tiny = load_config(ROOT / "models" / "qwen2-vl-tiny")
    assert chosen(tiny)[0].max_segments == Limits.max_segments
    assert choose_limits(config_from_json(TWO_B), {}, {}).max_segments == Limits.max_segments


def test_a_plan_says_on_which_cards_it_fits_and_what_would_help_on_smaller_ones():
    config = config_from_json(TWO_B)
    plan = plan_engine("tensorrt-rtx", config, "bfloat16", Limits(), costs_of(config))
    first, *others = card_lines(plan)
    assert first == "fits on cards of 24 GB and more"
    assert [line.split(" has")[0] for line in others] == [
        f"more than a card of {card} GB" for card in (8, 12, 16)
    ]
    assert others[1].endswith("--max-segments 16: 9.7 GB")


def test_a_plan_beyond_every_card_says_so():
    config = config_from_json(SEVEN_B)
    limits = Limits(max_context=32_768, max_batch=64)
    plan = plan_engine("tensorrt-rtx", config, "bfloat16", limits, costs_of(config))
    assert card_lines(plan)[0].startswith("fits on no common card")


# What the attention takes beside the tensors that every backend has


def decoder_bytes(dtype="bfloat16", **limits):
    _, decoder = costs_of(config_from_json(TWO_B), dtype)(Limits(**limits)).graphs
    return decoder.activation_bytes


@pytest.mark.parametrize(
    ("limits", "measured_bytes"),
    # Reported by TensorRT-RTX 1.7.1 for two layers of 2B with a vocabulary of 512.
    [
        ({"max_batch": 1, "max_context": 4096}, 132.2e6),
        ({"max_batch": 8, "max_context": 4096}, 1057.7e6),
        ({"max_batch": 8, "max_context": 16_384}, 4278.6e6),
        ({"max_batch": 1, "max_context": 32_768}, 937.5e6),
    ],
)
def test_the_decoders_memory_is_bounded_at_any_context(limits, measured_bytes):
    logits_bytes = limits["max_batch"] * 32 * 151_936 * 4
    assert measured_bytes <= decoder_bytes(**limits) - logits_bytes <= 1.45 * measured_bytes


def test_a_longer_cache_costs_working_memory_too():
    short, long = (decoder_bytes(max_context=tokens) for tokens in (4096, 8192))
    assert long - short == 8 * 4096 * 2 * 12 * 128 * 2  # keys and values of each query head


def test_float32_has_no_fused_vision_attention_and_the_plan_says_what_that_takes():
    config = config_from_json(TWO_B)
    limits = Limits(max_patches=1024, max_segments=2)
    vision, _ = costs_of(config, "float32")(limits).graphs
    assert vision.activation_bytes > 2 * 4 * 2 * 16 * 1024**2
