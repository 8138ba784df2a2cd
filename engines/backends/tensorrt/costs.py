"""What building and running a TensorRT engine takes beyond the model's own sizes, calibrated on builds.

TensorRT-RTX 1.7 on a CPU, bfloat16: upper bounds of the peak RSS of builds (docs/performance.md). The serialized engine
counts once; mapped weights are given back as they are read. For TensorRT itself the figures are a guess.
"""

from engines.backends.tensorrt.attention import attention_bodies
from engines.sizing.costs import ModelCosts, model_costs
from engines.sizing.limits import Limits
from export.checkpoint.config import ModelConfig
from export.dtypes import num_bytes
from plugins.registry import AttentionBody

_RAM_BASE_BYTES = 400_000_000
_RAM_PER_VISION_WEIGHT_BYTE = 2.6
"""Builds of 5 MB to 1.4 GB of weights took 78 to 93 percent of what this says."""
_MOST_MAPPED_BYTES = 600_000_000
"""Of weights read and not yet given back, on busy machines."""
_ENGINE_OVERHEAD_BYTES = 20_000_000
"""Kernels and names beside the weights; small builds have 5 to 16 MB, and more architectures add nothing."""


def engine_costs(config: ModelConfig, dtype: str, limits: Limits) -> ModelCosts:
    """Both engines, in the graphs' dtype."""
    value_bytes = num_bytes(dtype, 1)

    def build_costs(graph: str, weights_bytes: int) -> tuple[int, int]:
        if graph == "vision":
            ram_bytes = int(_RAM_PER_VISION_WEIGHT_BYTE * weights_bytes)
        else:
            copied_bytes = copied_decoder_weights(config) * value_bytes
            ram_bytes = weights_bytes + copied_bytes + min(weights_bytes, _MOST_MAPPED_BYTES)
        return weights_bytes + _ENGINE_OVERHEAD_BYTES, ram_bytes + _RAM_BASE_BYTES

    def attention_bytes(graph: str) -> int:
        body = attention_bodies(graph, dtype, limits.max_context, config)[0]
        if graph == "vision":
            return _vision_attention_bytes(config, limits, body)
        return _decoder_attention_bytes(config, limits, value_bytes, body)

    return model_costs(config, limits, value_bytes, build_costs, attention_bytes)


def _decoder_attention_bytes(
    config: ModelConfig, limits: Limits, value_bytes: int, body: AttentionBody
) -> int:
    """What a layer's attention over the whole capacity takes in prefill, for the body that is tried first.

    Fused: keys and values are copied for every query head. Folded: a mask of 2 bytes a score, and keys and values
    copied once. In plain products: float32 scores twice, keys and values.
    Upper bounds: two layers of 2B and 7B report 5 to 30 percent less for the whole graph.
    """
    decoder, tokens = config.decoder, limits.max_batch * limits.max_context
    scores = tokens * limits.prompt_tokens * decoder.num_attention_heads
    queried_heads = 2 * decoder.num_attention_heads * decoder.head_dim
    cached_heads = 2 * decoder.num_key_value_heads * decoder.head_dim
    if body == "fused":
        return tokens * queried_heads * value_bytes
    if body.startswith("folded"):
        return 2 * scores // decoder.num_key_value_heads + tokens * cached_heads * value_bytes
    return 2 * 4 * scores + 4 * tokens * queried_heads


def _vision_attention_bytes(config: ModelConfig, limits: Limits, body: AttentionBody) -> int:
    """In plain products: float32 scores of N * H * M * M, twice. The fused layer keeps none."""
    if body == "fused":
        return 0
    return 2 * 4 * limits.max_segments * config.vision.num_heads * limits.max_patches**2


def copied_decoder_weights(config: ModelConfig) -> int:
    """Number of weights of which TensorRT's builder holds a copy beside the engine.

    It joins products of the same input, so query, key and value, and gate and up; and holds a tied table twice more.
    Measured: anonymous memory before the engine is put together, 7B shapes with 4, 6 and 28 layers, 2B.
    """
    decoder = config.decoder
    projections = (decoder.num_attention_heads + 2 * decoder.num_key_value_heads) * decoder.head_dim
    joined = decoder.hidden_size * (projections + 2 * decoder.intermediate_size)
    tied = 2 * decoder.vocab_size * decoder.hidden_size if decoder.tie_word_embeddings else 0
    return decoder.num_hidden_layers * joined + tied
