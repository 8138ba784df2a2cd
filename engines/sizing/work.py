"""What a call must do at the very least: floating-point operations of its products, and bytes that a decode step reads.

Arithmetic on the model's sizes, after which a measured time is a share of what the machine can reach. A product of
[m, k] and [k, n] counts 2 m k n; norms, rotations and softmax are left out.
"""

from collections.abc import Sequence

from export.checkpoint.config import ModelConfig
from export.models.sizes import decoder_weights


def vision_operations(config: ModelConfig, segment_lengths: Sequence[int]) -> int:
    """Of one call over segments of so many patches each."""
    vision = config.vision
    patches = sum(segment_lengths)
    width = vision.embed_dim
    block = 4 * width * width + 2 * width * vision.intermediate_size
    merged = width * vision.patches_per_token
    merger = merged * merged + merged * vision.hidden_size
    attention = (
        2 * width * sum(length * length for length in segment_lengths)
    )  # scores, and their sum of values
    return 2 * (
        patches * (vision.patch_values * width + vision.depth * block)
        + patches // vision.patches_per_token * merger
        + vision.depth * attention
    )


def prefill_operations(config: ModelConfig, num_tokens: int) -> int:
    """Of a prompt taken into an empty slot in one call, whose last token alone is projected onto the vocabulary."""
    decoder = config.decoder
    seen = num_tokens * (num_tokens + 1) // 2  # each token sees itself and those before it
    attention = 2 * decoder.num_attention_heads * decoder.head_dim * seen * decoder.num_hidden_layers
    return 2 * (num_tokens * _layers_weights(config) + attention + _table_weights(config))


def decode_bytes(config: ModelConfig, value_bytes: int, batch: int, context: int) -> int:
    """That one step reads: all weights once, and of each slot the keys and values so far.

    Args:
        config: the model's sizes.
        value_bytes: of a weight and of a cached value, as the engine computes.
        batch: slots.
        context: tokens in each.
    """
    decoder = config.decoder
    cached = 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_dim * context * batch
    return value_bytes * (_layers_weights(config) + _table_weights(config) + cached)


def _table_weights(config: ModelConfig) -> int:
    return config.decoder.vocab_size * config.decoder.hidden_size


def _layers_weights(config: ModelConfig) -> int:
    """Without the embedding and the head."""
    tables = _table_weights(config) * (1 if config.decoder.tie_word_embeddings else 2)
    return decoder_weights(config) - tables
