"""Qwen2-VL's decoder divided among the ranks of a tensor-parallel group: which part of each weight a rank has.

Megatron-LM's division (arXiv 1909.08053, section 3): what reads the hidden state is cut by rows, so that each rank
has heads and columns of the MLP of its own; what gives it back by columns, so that the ranks' sum is the whole. The
vocabulary is cut by rows, in the table and in the head. What is summed has no bias, which would be added once a rank.
"""

from dataclasses import replace
from typing import Literal

from export.errors import UserError
from export.models.configuration import DecoderConfig, ModelConfig
from export.weights.slices import Slice

_ROWS, _COLUMNS = 0, 1


def rank_config(config: ModelConfig, rank: int, num_ranks: int) -> ModelConfig:
    """The configuration of one rank's decoder.

    Raises:
        UserError: the sizes do not divide; with the numbers of ranks that they divide by.
    """
    if num_ranks == 1:
        return config
    decoder = config.decoder
    if not _divides(decoder, num_ranks):
        sizes = [size for size in range(2, decoder.num_attention_heads + 1) if _divides(decoder, size)]
        raise UserError(
            f"--tensor-parallel {num_ranks}: the decoder's {decoder.num_attention_heads} heads over "
            f"{decoder.num_key_value_heads} of keys and values and {decoder.intermediate_size} columns of the MLP "
            "do not all divide by it.",
            f"Give {' or '.join(map(str, sizes))}." if sizes else "Use --pipeline-stages instead.",
        )
    part = replace(
        decoder,
        num_attention_heads=decoder.num_attention_heads // num_ranks,
        num_key_value_heads=max(decoder.num_key_value_heads // num_ranks, 1),
        intermediate_size=decoder.intermediate_size // num_ranks,
        rank=rank,
        num_ranks=num_ranks,
    )
    return replace(config, decoder=part)


def _divides(decoder: DecoderConfig, num_ranks: int) -> bool:
    """Ranks beyond the heads of keys and values have one each, the same as their neighbours."""
    keys = decoder.num_key_value_heads
    return num_ranks > 1 and not (
        decoder.num_attention_heads % num_ranks
        or decoder.intermediate_size % num_ranks
        or (keys % num_ranks and num_ranks % keys)
    )


def slice_of(name: str, config: ModelConfig, num_key_value_heads: int) -> Slice | None:
    """The part of a weight that a rank has; None: all of it.

    Args:
        name: published, of the weight.
        config: the rank's.
        num_key_value_heads: of the whole model.
    """
    part = config.decoder
    queries = part.num_attention_heads * part.head_dim
    keys = part.num_key_value_heads * part.head_dim
    first_key = part.rank * num_key_value_heads // part.num_ranks * part.head_dim
    of_queries, of_keys = (part.rank * queries, queries), (first_key, keys)
    of_mlp = (part.rank * part.intermediate_size, part.intermediate_size)
    of_tokens = (first_row(part), part.tokens_of_rank)
    parts = {
        "q_proj": (_ROWS, *of_queries),
        "k_proj": (_ROWS, *of_keys),
        "v_proj": (_ROWS, *of_keys),
        "o_proj": (_COLUMNS, *of_queries),
        "gate_proj": (_ROWS, *of_mlp),
        "up_proj": (_ROWS, *of_mlp),
        "down_proj": (_COLUMNS, *of_mlp),
        "embed_tokens": (_ROWS, *of_tokens),
        "lm_head": (_ROWS, *of_tokens),
    }
    found = parts.get(name.split(".")[-2])
    return None if found is None else Slice.of(*found)


def first_row(part: DecoderConfig) -> int:
    """Of the vocabulary's rows that a rank has; where they do not divide, the last has some of its neighbour's too."""
    return min(part.rank * part.tokens_of_rank, part.vocab_size - part.tokens_of_rank)


Joint = Literal["same", "side by side", "summed"]
"""How the values of ranks are one value: each has all of it, or its own columns, or what the others add to."""

_COLUMNS_OF_RANKS = (
    *("q_proj:out", "k_proj:out", "v_proj:out", "gate_proj:out", "up_proj:out", "lm_head:out"),
    *("o_proj:in", "down_proj:in", ":rotated_q", ":rotated_k"),
)


def joint_of(reference: str) -> Joint:
    """How ranks hold a value of the reference's, such as `model.layers.3.self_attn.q_proj:out`."""
    if reference.endswith(("o_proj:out", "down_proj:out")):
        return "summed"
    is_divided = reference.startswith(("model.layers.", "lm_head")) and reference.endswith(_COLUMNS_OF_RANKS)
    return "side by side" if is_divided else "same"
