"""What each stage of a decoder that is cut costs, and the GPU that holds the most of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from engines.sizing.costs import CostsOf, GraphCosts, ModelCosts
from engines.sizing.limits import Limits
from export.checkpoint.config import ModelConfig
from export.contract import DecoderStage


def staged_costs(
    costs: Callable[[ModelConfig, Limits], ModelCosts], config: ModelConfig, stages: Sequence[DecoderStage]
) -> CostsOf:
    """Costs as a function of limits, with a row for each stage in the place of the decoder's.

    Args:
        costs: a backend's, of a model in two graphs.
        config: the model's sizes.
        stages: of its decoder.
    """

    def staged(limits: Limits) -> ModelCosts:
        whole = costs(config, limits)
        if len(stages) == 1:
            return whole
        vision = next(graph for graph in whole.graphs if graph.name == "vision")
        parts = [_stage_costs(costs, config, stage, limits) for stage in stages]
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
    num_absent = num_counted - stage.is_first - stage.is_last
    num_weights = num_absent * decoder.vocab_size * decoder.hidden_size
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
    """Device memory of the fullest of as many GPUs as there are stages; each holds the vision encoder, too."""
    cache = costs.kv_cache_bytes(limits)
    vision, *stages = [graph.weights_bytes + graph.activation_bytes for graph in costs.graphs]
    shares = [graph.cache_share for graph in costs.graphs[1:]]
    return vision + max(own + int(cache * share) for own, share in zip(stages, shares, strict=True))
