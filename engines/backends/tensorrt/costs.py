"""What building and running a TensorRT engine takes beyond the model's own sizes, calibrated on builds.

TensorRT-RTX 1.7 on a CPU, bfloat16: upper bounds of the peak RSS of builds (docs/performance.md). The serialized engine
counts once; mapped weights are given back as they are read. For TensorRT itself the figures are a guess.
"""

from engines.sizing.costs import ELEMENT_BYTES, ModelCosts, model_costs
from engines.sizing.limits import Limits
from export.config import ModelConfig

_RAM_BASE_BYTES = 400_000_000
_RAM_PER_VISION_WEIGHT_BYTE = 2.6
"""Builds of 5 MB to 1.4 GB of weights took 78 to 93 percent of what this says."""
_MOST_MAPPED_BYTES = 600_000_000
"""Of weights read and not yet given back, on busy machines."""
_ENGINE_OVERHEAD_BYTES = 20_000_000
"""Kernels and names beside the weights; small builds have 5 to 16 MB, and more architectures add nothing."""


def engine_costs(config: ModelConfig, dtype: str, limits: Limits) -> ModelCosts:
    """Both engines, in the graphs' dtype."""
    value_bytes = ELEMENT_BYTES[dtype]

    def build_costs(graph: str, weights_bytes: int) -> tuple[int, int]:
        if graph == "vision":
            ram_bytes = int(_RAM_PER_VISION_WEIGHT_BYTE * weights_bytes)
        else:
            copied_bytes = copied_decoder_weights(config) * value_bytes
            ram_bytes = weights_bytes + copied_bytes + min(weights_bytes, _MOST_MAPPED_BYTES)
        return weights_bytes + _ENGINE_OVERHEAD_BYTES, ram_bytes + _RAM_BASE_BYTES

    return model_costs(config, limits, value_bytes, build_costs)


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
