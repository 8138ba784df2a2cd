"""What each part of a decoder that is cut into stages or divided among ranks costs, and the GPU that holds the most."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from engines.sizing.costs import CostsOf, GraphCosts, ModelCosts
from engines.sizing.limits import Limits
from export.checkpoint.config import ModelConfig
from export.contract import DecoderStage
from export.models.families import family_of


def staged_costs(
    costs: Callable[[ModelConfig, Limits], ModelCosts],
    config: ModelConfig,
    ranks: Sequence[Sequence[DecoderStage]],
) -> CostsOf:
    """Costs as a function of limits, with a row for each stage of each rank in the place of the decoder's.

    Args:
        costs: a backend's, of a model in two graphs.
        config: the model's sizes.
        ranks: the stages of each rank that its decoder is divided among: of one, where it is not.
    """
    rank_config = family_of(config.model_type).rank_config(config, 0, len(ranks))

    def staged(limits: Limits) -> ModelCosts:
        whole = costs(config, limits)
        if len(ranks) == len(ranks[0]) == 1:
            return whole
        vision = next(graph for graph in whole.graphs if graph.name == "vision")
        share = rank_config.decoder.num_key_value_heads / config.decoder.num_key_value_heads
        of_rank = [_stage_costs(costs, rank_config, stage, limits) for stage in ranks[0]]
        parts = [
            replace(part, name=stage.graph, cache_share=share * part.cache_share)
            for stages in ranks
            for part, stage in zip(of_rank, stages, strict=True)
        ]
        return replace(whole, graphs=(vision, *parts))

    return staged


def _stage_costs(
    costs: Callable[[ModelConfig, Limits], ModelCosts],
    config: ModelConfig,
    stage: DecoderStage,
    limits: Limits,
) -> GraphCosts:
    """As a decoder of so few layers, without the tables that this stage does not hold."""
    decoder = config.decoder
    smaller = replace(config, decoder=replace(decoder, num_hidden_layers=len(stage.layers)))
    graph = next(graph for graph in costs(smaller, limits).graphs if graph.name != "vision")
    num_counted = 1 if decoder.tie_word_embeddings else 2
    num_absent = max(num_counted - stage.is_first - stage.is_last, 0)
    num_weights = num_absent * decoder.tokens_of_rank * decoder.hidden_size
    table_bytes = num_weights * graph.weights_bytes // graph.num_weights
    logits_bytes = limits.max_batch * limits.max_logits_tokens * decoder.vocab_size * 4
    return GraphCosts(
        stage.graph,
        graph.num_weights - num_weights,
        graph.weights_bytes - table_bytes,
        graph.activation_bytes - (0 if stage.is_last else logits_bytes),
        max(graph.engine_bytes - table_bytes, 0),
        graph.build_ram_bytes - table_bytes,
        cache_share=len(stage.layers) / decoder.num_hidden_layers,
    )


def fullest_bytes(costs: ModelCosts, limits: Limits) -> int:
    """Device memory of the fullest of as many GPUs as there are parts; each holds the vision encoder, too."""
    cache = costs.kv_cache_bytes(limits)
    vision, *stages = [graph.weights_bytes + graph.activation_bytes for graph in costs.graphs]
    shares = [graph.cache_share for graph in costs.graphs[1:]]
    return vision + max(own + int(cache * share) for own, share in zip(stages, shares, strict=True))
