"""How an answer's tokens are chosen and when it ends, from the fields of a request of any protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from export.checkpoint.generation_config import GenerationConfig, override_generation_config
from export.errors import UserError

MAX_BIASES = 300
"""As in OpenAI's API."""
MAX_STOP_TOKEN_IDS = 64
MAX_TOKEN_ID = (1 << 31) - 1


def wished_generation(
    defaults: GenerationConfig,
    *,
    max_tokens: int,
    min_tokens: int | None = None,
    logit_bias: Mapping[str, Any] | None = None,
    ignore_eos: bool | None = None,
    stop_token_ids: Sequence[int] = (),
    **sampling: Any,
) -> GenerationConfig:
    """The checkpoint's way of choosing tokens, but for what a request says.

    Args:
        defaults: the checkpoint's.
        max_tokens, min_tokens: of the answer.
        logit_bias: by token id, as JSON writes keys.
        ignore_eos: go on where the checkpoint's own tokens end an answer.
        stop_token_ids: further tokens that end it.
        sampling: as `override_generation_config` names it; None is not said.

    Raises:
        UserError: values out of range.
    """
    config = override_generation_config(
        defaults,
        **sampling,
        logit_bias=_biases(logit_bias or {}) or None,
        min_new_tokens=min_tokens,
        max_new_tokens=max_tokens,
    )
    if len(stop_token_ids) > MAX_STOP_TOKEN_IDS or not all(
        0 <= one <= MAX_TOKEN_ID for one in stop_token_ids
    ):
        raise UserError(
            f"stop_token_ids must hold at most {MAX_STOP_TOKEN_IDS} token ids, whole numbers from 0 on."
        )
    ends = () if ignore_eos else config.eos_token_ids
    return replace(config, eos_token_ids=tuple(dict.fromkeys([*ends, *stop_token_ids])))


def _biases(given: Mapping[str, Any]) -> dict[int, float]:
    if len(given) > MAX_BIASES:
        raise UserError(f"logit_bias has {len(given)} entries, at most {MAX_BIASES} are taken.")
    wrong = [key for key in given if not (key.isascii() and key.isdigit() and len(key) < 10)]
    if wrong:
        raise UserError(f"logit_bias is by token id, found {wrong[0]!r:.40}.")
    return {int(key): bias for key, bias in given.items()}
