"""Which common GPUs have the memory that a plan needs, and what would make it fit on the next smaller one."""

from collections.abc import Callable
from dataclasses import replace

from engines.sizing.costs import EngineCosts, limit_advice
from engines.sizing.limits import Limits
from engines.sizing.stages import fullest_bytes

COMMON_CARDS_GB = (8, 12, 16, 24, 32, 48, 80, 96, 141)
"""As sold. A card of 8 GB has 8 GiB, 8.6e9 bytes: what it has beyond 8e9 is left to CUDA and the display."""

LEAST_SEGMENTS = 4
"""Of a vision call, where memory decides: a session sends more pictures than that in several calls."""


def card_bytes(card_gb: float) -> int:
    """What an engine may take of a card, at most."""
    return int(card_gb * 1e9)


def smallest_card(device_bytes: int) -> int | None:
    """The smallest common card of at least that memory, in GB; None: it needs more than any."""
    return next((card for card in COMMON_CARDS_GB if device_bytes <= card_bytes(card)), None)


def fit_segments(limits: Limits, device_bytes_of: Callable[[Limits], int], card_gb: float | None) -> Limits:
    """Fewer segments a vision call, where the attention's padding, segments times patches, would not fit.

    Args:
        limits: with as many segments as are wanted.
        device_bytes_of: what an engine of some limits takes on the device.
        card_gb: memory of the card; None: of the smallest common one on which `LEAST_SEGMENTS` fit.

    Returns:
        The limits with the most segments that fit, halved from the wanted ones; `LEAST_SEGMENTS` where none do.
    """
    least = replace(limits, max_segments=min(LEAST_SEGMENTS, limits.max_segments))
    card = card_gb if card_gb is not None else smallest_card(device_bytes_of(least))
    if card is None:
        return least
    while limits.max_segments > LEAST_SEGMENTS and device_bytes_of(limits) > card_bytes(card):
        limits = replace(limits, max_segments=max(limits.max_segments // 2, LEAST_SEGMENTS))
    return limits


def parts_text(plan: EngineCosts) -> str:
    """What the decoder's graphs are, where there are several."""
    return "parts" if any(".rank" in graph.name for graph in plan.graphs) else "stages"


def card_lines(plan: EngineCosts) -> list[str]:
    """On which common cards a plan fits, and for those on which it does not, which single limit would help."""
    card = smallest_card(plan.device_bytes)
    where = f"cards of {card} GB and more" if card else "no common card: several GPUs, or smaller limits"
    lines = [f"fits on {where}"]
    num_parts = len(plan.graphs) - 1
    if num_parts > 1:
        several = smallest_card(fullest_bytes(plan.costs_of(plan.limits), plan.limits))
        what = f"{num_parts} cards of {several} GB and more" if several else f"no {num_parts} common cards"
        lines.append(f"in its {num_parts} {parts_text(plan)}: fits on {what}")
    for smaller in COMMON_CARDS_GB:
        if card is not None and smaller >= card:
            break
        advice = next(limit_advice(plan, card_bytes(smaller)), None)
        if advice is not None:
            lines.append(f"more than a card of {smaller} GB has; what helps there: {advice}")
    return lines
