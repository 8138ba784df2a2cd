"""Which layers each stage of a pipeline gets."""

from itertools import accumulate, combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.random_checkpoint import SIZES, published_config
from export.checkpoint.config import config_from_json
from export.errors import UserError
from export.parallel import _least_heavy, balanced_layers


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.data())
def test_no_other_cut_has_a_lighter_heaviest_stage(costs, data):
    num_parts = data.draw(st.integers(1, len(costs)))
    found = _least_heavy(costs, num_parts)

    def heaviest(borders):
        return max(sum(costs[start:stop]) for start, stop in pairwise(borders))

    assert len(found) == num_parts
    assert sum(found) == len(costs)
    every_cut = ((0, *cuts, len(costs)) for cuts in combinations(range(1, len(costs)), num_parts - 1))
    assert heaviest([0, *accumulate(found)]) == min(map(heaviest, every_cut))


@pytest.mark.parametrize(("size", "stages"), [("2b", 2), ("7b", 2), ("7b", 4), ("72b", 4)])
def test_the_stages_of_published_sizes_are_near_to_equal(size, stages):
    config = config_from_json(published_config(SIZES[size], "bfloat16"))
    layers = balanced_layers(config, stages)
    assert sum(layers) == config.decoder.num_hidden_layers
    # The first and the last stage hold a table more, so they have no more layers than those between.
    assert max(layers[0], layers[-1]) <= max(layers[1:-1], default=config.decoder.num_hidden_layers)


@pytest.mark.parametrize("stages", [0, 29])
def test_more_stages_than_layers_are_refused(stages):
    config = config_from_json(published_config(SIZES["2b"], "bfloat16"))
    with pytest.raises(UserError, match=r"--pipeline-stages .* the decoder has 28 layers, so 1 to 28 stages"):
        balanced_layers(config, stages)
