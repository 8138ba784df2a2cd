"""An engine's limits: what was given, what is proposed, or the defaults."""

from collections.abc import Mapping

from engines.sizing.limits import Limits
from export.config import ModelConfig
from export.errors import UserError


def choose_limits(config: ModelConfig, given: Mapping[str, int], proposed: Mapping[str, int]) -> Limits:
    """What was given, else what is proposed, else the defaults, cut to what goes with the given ones.

    Raises:
        UserError: limits that contradict each other, or a context longer than the model's.
    """
    longest = config.decoder.max_position_embeddings
    values = {"max_context": min(Limits.max_context, longest), **proposed, **given}
    if values["max_context"] > longest:
        origin = (
            "given" if "max_context" in given else "what the pictures need with room for text and an answer"
        )
        raise UserError(
            f"max_context {values['max_context']} ({origin}) exceeds the {longest} tokens that the model was made for. "
            f"Use at most --max-context {longest}, or smaller or fewer pictures."
        )
    most_segments = values.get("max_patches", Limits.max_patches) // config.vision.patches_per_token
    fitting = {"max_segments": max(1, min(values.get("max_segments", Limits.max_segments), most_segments))}
    if "max_prompt_tokens" in values:
        fitting["max_prompt_tokens"] = min(values["max_prompt_tokens"], values["max_context"])
    return Limits(**{**values, **fitting, **given})


def options_text(limits: Mapping[str, object]) -> str:
    """Limits as options of `qv-export build`; `max_logits_tokens` is no option: serving asks for one."""
    return " ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in limits.items() if name != "max_logits_tokens"
    )
