"""How a decoder is divided: which layers each stage of a pipeline gets."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

from export.errors import UserError
from export.models.configuration import ModelConfig
from export.models.sizes import layer_weights, table_weights


def balanced_layers(config: ModelConfig, num_stages: int) -> tuple[int, ...]:
    """How many layers each stage gets, so that the stage with the most weights has as few as it can.

    The first stage holds the token embedding and the last one the head, each counted in layers' worth of weights.

    Args:
        config: the model's sizes.
        num_stages: at least 1.

    Raises:
        UserError: more stages than layers.
    """
    decoder = config.decoder
    num_layers = decoder.num_hidden_layers
    if not 1 <= num_stages <= num_layers:
        raise UserError(
            f"--pipeline-stages {num_stages}: the decoder has {num_layers} layers, so 1 to {num_layers} stages.",
            f"Give at most {num_layers}.",
        )
    costs = [layer_weights(decoder)] * num_layers
    costs[0] += table_weights(decoder)
    costs[-1] += table_weights(decoder)
    return _least_heavy(costs, num_stages)


def _least_heavy(costs: Sequence[int], num_parts: int) -> tuple[int, ...]:
    """Sizes of `num_parts` runs of `costs` whose heaviest is as light as it can be, by dynamic programming."""
    sums = [0, *accumulate(costs)]
    total = len(costs)
    best: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {
        (1, stop): (sums[stop], (stop,)) for stop in range(1, total + 1)
    }
    for parts in range(2, num_parts + 1):
        for stop in range(parts, total + 1):
            best[parts, stop] = min(
                (max(best[parts - 1, cut][0], sums[stop] - sums[cut]), (*best[parts - 1, cut][1], stop))
                for cut in range(parts - 1, stop)
            )
    return tuple(stop - start for start, stop in pairwise((0, *best[num_parts, total][1])))
