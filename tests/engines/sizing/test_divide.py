"""What ranks and stages cost on cards, and which division is proposed."""

from pathlib import Path

import pytest

from engines.backends.tensorrt.costs import engine_costs
from engines.sizing.divide import best_division, divisions
from engines.sizing.limits import Limits
from engines.sizing.stages import fullest_bytes, staged_costs
from examples.random_checkpoint import SIZES, published_config
from export.checkpoint.config import config_from_json
from export.contract import decoder_stages
from qv_export.show.divide import division_row, sentence

LIMITS = Limits(max_batch=4, max_context=8192, max_segments=4)


def config_of(size):
    return config_from_json(published_config(SIZES[size], "bfloat16"))


def costs(config, limits):
    return engine_costs(config, "bfloat16", limits)


def best(cards):
    proposed = best_division(cards, 8192, 4)
    assert proposed is not None
    return proposed


def found(size, cards, card_gb, limits=LIMITS):
    return divisions(costs, config_of(size), limits, cards, card_gb)


@pytest.mark.parametrize(("size", "ranks"), [("2b", 2), ("7b", 4), ("72b", 8)])
def test_ranks_hold_the_weights_between_them_and_norms_and_biases_each(size, ranks):
    config = config_of(size)
    layers = (config.decoder.num_hidden_layers,)
    groups = [decoder_stages(layers, rank) for rank in range(ranks)]
    whole = costs(config, LIMITS)
    divided = staged_costs(costs, config, groups)(LIMITS)
    assert [graph.name for graph in divided.graphs[1:]] == [f"decoder.rank{rank}" for rank in range(ranks)]
    own = sum(graph.num_weights for graph in divided.graphs[1:])
    norms = (ranks - 1) * (2 * layers[0] + 1) * config.decoder.hidden_size
    assert own == whole.graphs[1].num_weights + norms
    assert sum(graph.cache_share for graph in divided.graphs[1:]) == pytest.approx(1)
    assert fullest_bytes(divided, LIMITS) < fullest_bytes(whole, LIMITS)


def test_ranks_beyond_the_heads_of_keys_hold_more_cache_than_one_card_would():
    config = config_of("2b")
    groups = [decoder_stages((28,), rank) for rank in range(4)]
    divided = staged_costs(costs, config, groups)(LIMITS)
    assert [graph.cache_share for graph in divided.graphs[1:]] == [0.5] * 4


def test_72b_fits_no_two_cards_of_80_gb_but_four_and_one_pair_of_141():
    assert best_division(found("72b", 1, 80), 8192, 4) is None
    assert best_division(found("72b", 2, 80), 8192, 4) is None
    four = best(found("72b", 4, 80))
    assert (four.ranks, four.stages, four.replicas) == (1, 4, 1)
    two = best(found("72b", 2, 141))
    assert (two.ranks, two.stages, two.replicas) == (1, 2, 1)


def test_a_model_that_fits_one_card_is_copied_and_not_divided():
    one = best(found("7b", 4, 80))
    assert (one.ranks, one.stages, one.replicas) == (1, 1, 4)
    assert one.options == ""
    assert one.links == "none"
    assert one.token_bytes == 0


def test_divisions_that_the_heads_do_not_allow_are_left_out():
    assert {one.ranks for one in found("7b", 8, 80)} == {1, 2, 4}
    assert {one.ranks for one in found("72b", 8, 80)} == {1, 2, 4, 8}


def test_more_ranks_leave_room_for_more_tokens_and_say_what_they_send():
    by_ranks = {one.ranks: one for one in found("72b", 8, 80) if one.stages == 1}
    assert not by_ranks[1].fits
    assert not by_ranks[2].fits
    assert 300_000 < by_ranks[4].kv_tokens < by_ranks[8].kv_tokens
    assert by_ranks[4].kv_bytes_per_token == 80 * 1024
    # 161 sums of 16 KiB by a ring of four cards, and three quarters of the logits.
    assert by_ranks[4].token_bytes == 161 * 16384 * 2 * 3 // 4 + 152_064 * 2 * 3 // 4
    assert by_ranks[4].links == "NVLink among the ranks of a stage"
    assert by_ranks[4].options == "--tensor-parallel 4"


def test_where_no_context_is_whole_the_most_tokens_win():
    cards = found("72b", 4, 80)
    most = best_division(cards, 10_000_000, 4)
    assert most is not None
    assert most.kv_tokens == max(one.kv_tokens for one in cards)


TABLED = [("7b", 4, 24), ("72b", 2, 141), ("72b", 4, 80), ("72b", 8, 80)]


@pytest.mark.parametrize(("size", "cards", "card_gb"), TABLED)
def test_the_docs_have_the_plans_own_rows(size, cards, card_gb):
    docs = (Path(__file__).resolve().parents[3] / "docs" / "parallel.md").read_text(encoding="utf-8")
    told = found(size, cards, card_gb)
    for one in told:
        row = " | ".join((f"{size.upper()}, {cards} x {card_gb} GB", *division_row(one)))
        assert f"| {row} |" in docs
    assert sentence(best(told), LIMITS) in docs
