"""How many weights a model's parts have, by its configuration alone."""

from export.models.configuration import DecoderConfig, ModelConfig


def vision_weights(config: ModelConfig) -> int:
    """Number of weights of the vision encoder: patch embedding, blocks, merger."""
    vision = config.vision
    width, hidden = vision.embed_dim, vision.intermediate_size
    block = 4 * width * width + 4 * width + 2 * width * hidden + hidden + width + 4 * width
    merged = width * vision.patches_per_token
    merger = 2 * width + merged * merged + merged + merged * vision.hidden_size + vision.hidden_size
    return vision.patch_values * width + vision.depth * block + merger


def decoder_weights(config: ModelConfig) -> int:
    """Number of weights of the decoder; tied embeddings count once, as the graph holds them."""
    decoder = config.decoder
    tables = table_weights(decoder) * (1 if decoder.tie_word_embeddings else 2)
    return tables + decoder.num_hidden_layers * layer_weights(decoder) + decoder.hidden_size


def layer_weights(decoder: DecoderConfig) -> int:
    """Number of weights of one decoder layer: attention with its biases, the gated MLP, two norms."""
    width = decoder.hidden_size
    queries = decoder.num_attention_heads * decoder.head_dim
    keys = decoder.num_key_value_heads * decoder.head_dim
    attention = width * (queries + 2 * keys) + queries + 2 * keys + queries * width
    return attention + 3 * width * decoder.intermediate_size + 2 * width


def table_weights(decoder: DecoderConfig) -> int:
    """Number of weights of the token embedding, and of the head; of one rank, where there are several."""
    return decoder.tokens_of_rank * decoder.hidden_size
