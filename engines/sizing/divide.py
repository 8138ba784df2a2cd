"""How several cards of one size can hold a model: every division among ranks and stages, and the one to take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from engines.sizing.cards import card_bytes
from engines.sizing.costs import ModelCosts
from engines.sizing.limits import Limits
from engines.sizing.stages import staged_costs
from export.checkpoint.config import ModelConfig
from export.contract import decoder_stages
from export.errors import UserError
from export.models.families import family_of
from export.parallel import balanced_layers

_USABLE = 0.94
"""Of a card: the rest is the driver's, CUDA's and what fragments."""


@dataclass(frozen=True)
class Division:
    """One way to use the cards."""

    ranks: int
    """That each stage is divided among."""
    stages: int
    replicas: int
    """Whole copies, where fewer cards hold one."""
    weights_bytes: int
    """Of the fullest card, the vision encoder's with them."""
    activation_bytes: int
    """Of the largest calls on that card."""
    kv_bytes_per_token: int
    """Of the fullest card."""
    kv_tokens: int
    """That fit beside them, over all slots of one copy; 0: it does not fit."""
    token_bytes: int
    """That one token's step sends between cards of one copy: sums and gathers of ranks, hidden states of stages."""

    @property
    def fits(self) -> bool:
        return self.kv_tokens > 0

    @property
    def links(self) -> str:
        """What the cards should be joined by."""
        if self.ranks > 1:
            return "NVLink among the ranks of a stage"
        return "any" if self.stages > 1 else "none"

    @property
    def options(self) -> str:
        """Of `qv-export export`."""
        given = {"--tensor-parallel": self.ranks, "--pipeline-stages": self.stages}
        return " ".join(f"{name} {value}" for name, value in given.items() if value > 1)


@dataclass(frozen=True)
class Proposal:
    """Every division, and the one to take."""

    limits: Limits
    """What is asked of it."""
    divisions: tuple[Division, ...]
    best: Division | None
    """None: none fits."""


def propose(
    costs: Callable[[ModelConfig, Limits], ModelCosts],
    config: ModelConfig,
    limits: Limits,
    num_cards: int,
    card_gb: float,
) -> Proposal:
    """Compare all divisions. Args as `divisions`."""
    found = divisions(costs, config, limits, num_cards, card_gb)
    return Proposal(limits, tuple(found), best_division(found, limits.max_context, limits.max_batch))


def divisions(
    costs: Callable[[ModelConfig, Limits], ModelCosts],
    config: ModelConfig,
    limits: Limits,
    num_cards: int,
    card_gb: float,
    value_bytes: int = 2,
) -> list[Division]:
    """Every division whose ranks and stages go evenly into the cards, those of the fewest cards first.

    Args:
        costs: a backend's, of a model in two graphs.
        config: the whole model's sizes.
        limits: of the engines; the context is what is left over, not what they say.
        num_cards: of that size.
        card_gb: memory of one.
        value_bytes: of one value as it is computed.
    """
    sizes = [size for size in range(1, num_cards + 1) if num_cards % size == 0]
    found = [
        _division(costs, config, limits, (ranks, stages), num_cards, card_gb, value_bytes)
        for ranks in sizes
        for stages in sizes
        if num_cards % (ranks * stages) == 0 and _divides(config, ranks, stages)
    ]
    return sorted(found, key=lambda one: (one.ranks * one.stages, one.ranks))


def best_division(found: Sequence[Division], max_context: int, max_batch: int) -> Division | None:
    """The first that holds every slot's whole context, else the one with room for the most tokens; None: none fits.

    In copies on as few cards as hold one: those never wait for each other. Of as many cards, stages before ranks: a
    hidden state a border instead of two sums a layer.
    """
    fitting = [one for one in found if one.fits]
    enough = (one for one in fitting if one.kv_tokens >= max_context * max_batch)
    return next(enough, max(fitting, key=lambda one: one.kv_tokens, default=None))


def _divides(config: ModelConfig, ranks: int, stages: int) -> bool:
    try:
        family_of(config.model_type).rank_config(config, 0, ranks)
        balanced_layers(config, stages)
    except UserError:
        return False
    return True


def _division(
    costs: Callable[[ModelConfig, Limits], ModelCosts],
    config: ModelConfig,
    limits: Limits,
    division: tuple[int, int],
    num_cards: int,
    card_gb: float,
    value_bytes: int,
) -> Division:
    ranks, stages = division
    layers = balanced_layers(config, stages)
    groups = [decoder_stages(layers, rank if ranks > 1 else None) for rank in range(ranks)]
    all_costs = staged_costs(costs, config, groups)(replace(limits, max_context=limits.prompt_tokens))
    vision, *parts = all_costs.graphs
    usable = int(card_bytes(card_gb) * _USABLE)

    def left(part_index: int) -> float:
        part = parts[part_index]
        taken = vision.weights_bytes + vision.activation_bytes + part.weights_bytes + part.activation_bytes
        return (usable - taken) / (all_costs.kv_bytes_per_token * part.cache_share)

    fullest = min(range(len(parts)), key=left)
    part = parts[fullest]
    return Division(
        ranks,
        stages,
        num_cards // (ranks * stages),
        vision.weights_bytes + part.weights_bytes,
        vision.activation_bytes + part.activation_bytes,
        int(all_costs.kv_bytes_per_token * part.cache_share),
        max(int(left(fullest)), 0),
        _token_bytes(config, ranks, stages, value_bytes),
    )


def _token_bytes(config: ModelConfig, ranks: int, stages: int, value_bytes: int) -> int:
    """Sums by a ring, where a card sends 2 (N - 1) / N of a tensor; two a layer and one of embeddings."""
    decoder = config.decoder
    hidden = decoder.hidden_size * value_bytes
    sums = (2 * decoder.num_hidden_layers + 1) * hidden * 2 * (ranks - 1) // ranks
    gather = decoder.vocab_size * value_bytes * (ranks - 1) // ranks
    return sums + gather + hidden * (stages - 1)
