"""Keys of a `config.json` that may be passed over, because they change no number that a model computes.

Every other key that nobody reads is named and refused: a mechanism that is silently dropped shows up only as worse
answers. Keys that begin with an underscore are Transformers' own bookkeeping.
"""

from collections.abc import Iterable

from export.models.section import Section

_INERT = frozenset(
    {
        # Who wrote the file, with what, and where its classes lie.
        "model_type", "transformers_version", "name_or_path", "auto_map", "custom_pipelines", "tokenizer_class",
        "processor_class", "finetuning_task", "task_specific_params", "unsloth_version", "unsloth_fixed", "license",
        "tags", "architectures", "base_model_name_or_path",
        # How a file in memory is stored; the weights say it themselves.
        "dtype", "torch_dtype",
        # Training.
        "attention_dropout", "hidden_dropout", "initializer_range", "gradient_checkpointing", "problem_type",
        "router_aux_loss_coef", "tf_legacy_loss", "use_bfloat16", "ignore_index",
        # What a call returns and how it is run.
        "use_cache", "output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "torchscript",
        "attn_implementation", "chunk_size_feed_forward", "id2label", "label2id", "num_labels",
        # Tokens: `generation_config.json` and the tokenizer's files decide; `eos_token_id` is read with the former.
        "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "vision_token_id",
        "prefix",
    }
)  # fmt: skip

# Harmless at these values alone: what they would switch on is not computed.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "is_encoder_decoder": (False,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "pretraining_tp": (1,),
    "attention_bias": (True,),
    "qkv_bias": (True,),
    "mlp_bias": (False,),
}

# Settings of generation, which Transformers before 5 also took from here: at these values they choose as without them.
_NEUTRAL_GENERATION: dict[str, tuple[object, ...]] = {
    "max_length": (20,),
    "min_length": (0,),
    "do_sample": (False,),
    "early_stopping": (False,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "temperature": (1,),
    "top_k": (50,),
    "top_p": (1,),
    "typical_p": (1,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "num_return_sequences": (1,),
    "output_scores": (False,),
    "return_dict_in_generate": (False,),
    "remove_invalid_values": (False,),
}


def refuse_unread(section: Section, inert: Iterable[str] = ()) -> None:
    """Add a problem for each key that was neither asked for nor is known to change nothing.

    Args:
        section: whose every key that decides numbers was asked for.
        inert: keys that change nothing in this object in particular.
    """
    for key, allowed in _NEUTRAL.items():
        if key in section.content:
            section.one_of(key, allowed)
    for key, allowed in _NEUTRAL_GENERATION.items():
        if section.get(key, allowed[0]) not in allowed:
            section.problem(
                f"{key} is {section.get(key)!r}: move settings of generation to generation_config.json, which is read"
            )
    known = _INERT.union(inert)
    unread = sorted(key for key in section.unread() if key not in known and not key.startswith("_"))
    if unread:
        section.problem(
            f"{', '.join(unread)}: not known to qv-export. Remove what changes no number that the model computes"
        )
