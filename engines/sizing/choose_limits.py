"""An engine's limits: what was given, what is proposed, or the defaults."""

from collections.abc import Mapping
from dataclasses import fields

from engines.sizing.cards import fit_segments
from engines.sizing.costs import CostsOf
from engines.sizing.limits import Limits
from export.checkpoint.config import ModelConfig
from export.errors import UserError


def choose_limits(
    config: ModelConfig,
    given: Mapping[str, int],
    proposed: Mapping[str, int],
    costs_of: CostsOf | None = None,
    card_gb: float | None = None,
) -> Limits:
    """What was given, else what is proposed, else the defaults, cut to what goes with the given ones and on a card.

    Args:
        config: the model's sizes.
        given: limits that the user asked for; they stand.
        proposed: limits that pictures ask for.
        costs_of: what engines take on a device; None: it has no memory of its own.
        card_gb: memory of the card that will run them; None: the smallest common one that does.

    Raises:
        UserError: unknown limits, limits that contradict each other, or a context longer than the model's.
    """
    names = {field.name for field in fields(Limits)}
    if unknown := sorted(given.keys() - names):
        raise UserError(f"There is no limit {', '.join(unknown)}. There are: {', '.join(sorted(names))}.")
    longest = config.decoder.max_position_embeddings
    values = {"max_context": min(Limits.max_context, longest), **proposed, **given}
    if values["max_context"] > longest:
        origin = (
            "given" if "max_context" in given else "what the pictures need with room for text and an answer"
        )
        raise UserError(
            f"max_context {values['max_context']} ({origin}) exceeds the {longest} tokens that the model was made for.",
            f"Use at most --max-context {longest}, or smaller or fewer pictures.",
        )
    most_segments = values.get("max_patches", Limits.max_patches) // config.vision.patches_per_token
    fitting = {"max_segments": max(1, min(values.get("max_segments", Limits.max_segments), most_segments))}
    if "max_prompt_tokens" in values:
        fitting["max_prompt_tokens"] = min(values["max_prompt_tokens"], values["max_context"])
    limits: Limits = Limits(**{**values, **fitting, **given})
    if costs_of is None or "max_segments" in given:
        return limits
    return fit_segments(limits, lambda some: costs_of(some).device_bytes(some), card_gb)


def options_text(limits: Mapping[str, object]) -> str:
    """Limits as options of `qv-export build`; `max_logits_tokens` is no option: serving asks for one."""
    return " ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in limits.items() if name != "max_logits_tokens"
    )
