"""What the stages of a decoder cost beside the decoder in one graph."""

import pytest

from engines.backends.tensorrt.costs import engine_costs
from engines.sizing.limits import Limits
from engines.sizing.stages import fullest_bytes, staged_costs
from examples.random_checkpoint import SIZES, published_config
from export.checkpoint.config import config_from_json
from export.contract import decoder_stages
from export.parallel import balanced_layers

LIMITS = Limits(max_batch=4, max_context=8192)


def costs_of(size, num_stages):
    config = config_from_json(published_config(SIZES[size], "bfloat16"))
    stages = decoder_stages(balanced_layers(config, num_stages))
    staged = staged_costs(lambda some, limits: engine_costs(some, "bfloat16", limits), config, [stages])
    return config, staged(LIMITS)


@pytest.mark.parametrize(("size", "num_stages"), [("2b", 2), ("7b", 3), ("72b", 4), ("72b", 8)])
def test_stages_hold_every_weight_once_but_for_a_tied_table(size, num_stages):
    config, whole = costs_of(size, 1)
    _, staged = costs_of(size, num_stages)
    table = config.decoder.vocab_size * config.decoder.hidden_size
    extra = table if config.decoder.tie_word_embeddings else 0
    # The final norm is counted in each stage: an upper bound, by 8192 of 72 billion.
    norms = (num_stages - 1) * config.decoder.hidden_size
    assert (
        sum(graph.num_weights for graph in staged.graphs[1:]) == whole.graphs[1].num_weights + extra + norms
    )
    assert sum(graph.cache_share for graph in staged.graphs[1:]) == pytest.approx(1)
    assert staged.kv_cache_bytes(LIMITS) == whole.kv_cache_bytes(LIMITS)
    assert max(graph.build_ram_bytes for graph in staged.graphs[1:]) < whole.graphs[1].build_ram_bytes


def test_72b_fits_two_cards_of_141_gb_or_four_of_80_and_no_single_one():
    _, one = costs_of("72b", 1)
    assert one.device_bytes(LIMITS) > 141e9
    for num_stages, card in ((2, 141e9), (4, 80e9)):
        _, staged = costs_of("72b", num_stages)
        assert fullest_bytes(staged, LIMITS) < card


def test_one_graph_costs_what_it_did():
    config, whole = costs_of("2b", 1)
    assert whole == engine_costs(config, "bfloat16", LIMITS)
