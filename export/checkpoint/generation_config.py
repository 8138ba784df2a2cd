"""How a checkpoint wants its tokens chosen, and what the user changed.

Reads `generation_config.json` with Transformers' meaning: a key that is absent or null takes Transformers'
default (`top_k` 50 among them), since checkpoints are written against those.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from export.errors import UserError
from export.files.checks import is_number, is_whole
from export.files.json_fields import Check, field_problems
from export.files.json_object import read_json_object

logger = logging.getLogger(__name__)

FILE_NAME = "generation_config.json"
DEFAULT_MAX_NEW_TOKENS = 512
# Below this the softmax is one-hot and logits / temperature can overflow float32: taken as greedy.
SMALLEST_TEMPERATURE = 1e-5


MAX_LOGPROBS = 20
"""As in OpenAI's API."""
_LARGEST_BIAS = 100.0


def _from(least: float, most: float = math.inf) -> Callable[[object], bool]:
    return lambda value: is_number(value) and least <= value <= most


def _whole_from(least: int, most: float = math.inf) -> Callable[[object], bool]:
    return lambda value: is_number(value) and is_whole(value) and least <= value <= most


def _is_token_id(value: object) -> bool:
    return is_whole(value) and value >= 0


def _are_token_ids(value: object) -> bool:
    return isinstance(value, tuple) and all(map(_is_token_id, value))


def _are_biases(value: object) -> bool:
    return isinstance(value, tuple) and all(
        _is_token_id(token_id) and is_number(bias) and abs(bias) <= _LARGEST_BIAS for token_id, bias in value
    )


_Off = Check("a whole number, 0 (off) or more", _whole_from(0))
_Penalty = Annotated[float, Check("a number from -2 to 2", _from(-2, 2))]


@dataclass(frozen=True)
class GenerationConfig:
    """How tokens are chosen and when an answer ends. Names and meanings as in Transformers' GenerationConfig.

    Raises:
        UserError: values outside their ranges; all of them at once.
    """

    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer. Without any, only a length does."""
    pad_token_id: Annotated[
        int | None,
        Check("a token id (a whole number, 0 or more)", lambda value: value is None or _is_token_id(value)),
    ] = None
    do_sample: Annotated[bool, Check("true or false", lambda value: isinstance(value, bool))] = False
    temperature: Annotated[float, Check("a number from 0 (greedy) to 100", _from(0, 100))] = 1.0
    """0 means greedy."""
    top_k: Annotated[int, _Off] = 50
    """0 switches the filter off."""
    top_p: Annotated[float, Check("a number from 0 to 1", _from(0, 1))] = 1.0
    min_p: Annotated[float, Check("a number from 0 (off) to 1", _from(0, 1))] = 0.0
    """Tokens less likely than this share of the likeliest are left out; 0 switches the filter off."""
    repetition_penalty: Annotated[
        float, Check("a number from 0.01 to 100 (1 is no penalty)", _from(0.01, 100))
    ] = 1.0
    presence_penalty: _Penalty = 0.0
    """Taken from the logit of every token that the answer holds (OpenAI's API)."""
    frequency_penalty: _Penalty = 0.0
    """The same, once for each time that the answer holds it."""
    logit_bias: Annotated[
        tuple[tuple[int, float], ...],
        Check(f"token ids with numbers from {-_LARGEST_BIAS:g} to {_LARGEST_BIAS:g}", _are_biases),
    ] = ()
    """(token id, what is added to its logit)."""
    no_repeat_ngram_size: Annotated[int, _Off] = 0
    """No run of so many tokens comes twice in prompt and answer; 0 allows it."""
    min_new_tokens: Annotated[int, Check("a whole number, 0 or more", _whole_from(0))] = 0
    """No token ends the answer before."""
    max_new_tokens: Annotated[int, Check("a whole number of at least 1", _whole_from(1))] = (
        DEFAULT_MAX_NEW_TOKENS
    )
    num_logprobs: Annotated[
        int | None,
        Check(
            f"a whole number from 0 to {MAX_LOGPROBS}",
            lambda value: value is None or _whole_from(0, MAX_LOGPROBS)(value),
        ),
    ] = None
    """Tell of every token how likely it was, and of so many of the likeliest; None tells nothing."""
    suppress_tokens: Annotated[
        tuple[int, ...], Check("a list of token ids (whole numbers, 0 or more)", _are_token_ids)
    ] = ()
    """Never chosen. An export adds the ids that have no token, which pad the vocabulary to a round size."""

    def __post_init__(self) -> None:
        problems = field_problems(self)
        ids = self.eos_token_ids
        if not _are_token_ids(ids):
            found = ids[0] if isinstance(ids, tuple) and len(ids) == 1 else ids
            expected = "a token id or a list of them (whole numbers, 0 or more)"
            problems.insert(0, f"eos_token_id must be {expected}, found {found!r}")
        if problems:
            raise UserError("generation settings out of range:\n- " + "\n- ".join(problems))

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken, with no chance involved."""
        return not self.do_sample or self.temperature < SMALLEST_TEMPERATURE


def load_generation_config(directory: Path, eos_token_ids: tuple[int, ...] = ()) -> GenerationConfig:
    """Read a checkpoint's own settings; a checkpoint without the file decodes greedily.

    Args:
        directory: the checkpoint's or the bundle's.
        eos_token_ids: what ends an answer where the file does not say (from `config.json` or the tokenizer).

    Raises:
        UserError: the file is no JSON object or holds values out of range.
    """
    path = directory / FILE_NAME
    content = read_json_object(path) if path.exists() else {}
    return generation_config_from_json(content, eos_token_ids, source=str(path))


def checkpoint_generation_config(directory: Path) -> GenerationConfig:
    """A checkpoint's own settings; one without `generation_config.json` names its last token in `config.json`.

    Raises:
        UserError: as `load_generation_config`.
    """
    path = directory / "config.json"
    content = read_json_object(path)
    nested = content.get("text_config")
    eos = content.get("eos_token_id")
    if eos is None and isinstance(nested, Mapping):
        eos = nested.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(map(_is_token_id, ids)):
        raise UserError(f"{path}: eos_token_id must be a token id or a list of them, found {eos!r}")
    return load_generation_config(directory, tuple(ids))


def generation_config_from_json(
    content: Mapping[str, Any], eos_token_ids: tuple[int, ...] = (), source: str = FILE_NAME
) -> GenerationConfig:
    """Build the settings from a parsed `generation_config.json`; keys that would change the answer but that the
    runtime does not know are logged as warnings.

    Raises:
        UserError: values out of range; the message names `source`.
    """
    given = {key: value for key, value in content.items() if value is not None}
    _warn_unsupported(given, source)
    known = {field.name for field in fields(GenerationConfig)} - {"eos_token_ids", *_OF_A_REQUEST}
    settings = {key: value for key, value in given.items() if key in known}
    if isinstance(settings.get("suppress_tokens"), list):
        settings["suppress_tokens"] = tuple(settings["suppress_tokens"])
    eos = given.get("eos_token_id", eos_token_ids)
    try:
        return GenerationConfig(
            eos_token_ids=tuple(eos) if isinstance(eos, list | tuple) else (eos,), **settings
        )
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def override_generation_config(
    config: GenerationConfig,
    *,
    do_sample: bool | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    logit_bias: Mapping[int, float] | None = None,
    no_repeat_ngram_size: int | None = None,
    min_new_tokens: int | None = None,
    max_new_tokens: int | None = None,
    num_logprobs: int | None = None,
) -> GenerationConfig:
    """Apply what the user asked for; None keeps the checkpoint's own.

    Who names a temperature, top_k, top_p or min_p wants to sample, so these switch sampling on unless `do_sample`
    says otherwise. Qwen2-VL checkpoints come with top_k 1 (greedy in effect): a higher temperature alone does
    not lift that.

    Raises:
        UserError: values out of range.
    """
    if do_sample is None and any(value is not None for value in (temperature, top_k, top_p, min_p)):
        do_sample = True
    asked: dict[str, Any] = {
        "do_sample": do_sample,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "logit_bias": None if logit_bias is None else tuple(sorted(logit_bias.items())),
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "min_new_tokens": min_new_tokens,
        "max_new_tokens": max_new_tokens,
        "num_logprobs": num_logprobs,
    }
    return replace(config, **{name: value for name, value in asked.items() if value is not None})


# Keys of Transformers that change which tokens come out, with the values that change nothing.
# What only a request says: under these names the file's own keys have other meanings, or none.
_OF_A_REQUEST = frozenset({"presence_penalty", "frequency_penalty", "logit_bias", "num_logprobs"})
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "top_h": (),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "max_length": (20,),
    "min_length": (0,),
    "max_time": (),
    "stop_strings": ([], ""),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "sequence_bias": ([], {}),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "begin_suppress_tokens": ([],),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "renormalize_logits": (False,),
    "remove_invalid_values": (False,),
    "token_healing": (False,),
    "num_return_sequences": (1,),
    "watermarking_config": (),
}
# Who wrote the file, how a call runs and what it returns, tokens of other kinds of model: no answer depends on them.
_INERT = frozenset(
    {
        "transformers_version", "bos_token_id", "decoder_start_token_id", "use_cache", "cache_implementation",
        "cache_config", "max_cache_len", "output_attentions", "output_hidden_states", "output_scores", "output_logits",
        "return_dict_in_generate", "return_legacy_cache", "low_memory", "compile_config", "disable_compile",
        "prefill_chunk_size", "continuous_batching_config",
        # Speculation: greedy answers stay what they are.
        "use_mtp", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_early_exit",
        "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight",
        "prompt_lookup_num_tokens", "max_matching_ngram_size", "speculation_type",
    }
)  # fmt: skip


def _warn_unsupported(given: Mapping[str, Any], source: str) -> None:
    active = [key for key, neutral in _UNSUPPORTED.items() if key in given and given[key] not in neutral]
    if active:
        logger.warning("%s: not supported and ignored: %s", source, ", ".join(active))
    known = {*_UNSUPPORTED, *_INERT, "eos_token_id", *(field.name for field in fields(GenerationConfig))}
    known -= {"eos_token_ids", *_OF_A_REQUEST}
    unknown = sorted(key for key in given if key not in known and not key.startswith("_"))
    if unknown:
        logger.warning("%s: not known and ignored: %s", source, ", ".join(unknown))
