"""Whether this version of Transformers may be trusted as a second opinion: some compute other positions than meant.

The product does not import Transformers: its reference is its own. Tests and benchmarks that compare with it ask
here first, and take positions from the processor, which a rule written apart checks (`tests/support/mrope_rule.py`).
"""

from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from export.errors import UserError


@dataclass(frozen=True)
class KnownFault:
    """Versions that compute something else than the published model, and where that shows."""

    versions: SpecifierSet
    what: str
    source: str
    only_positions: bool
    """True where everything is right once `position_ids` are given."""
    fixed_in: str | None


KNOWN_FAULTS = (
    KnownFault(
        SpecifierSet(">=5.4.0,<5.5.4", prereleases=True),
        "get_rope_index gives wrong M-RoPE ids to prompts with pictures",
        "transformers#45325, transformers#45330",
        only_positions=False,
        fixed_in="5.5.4",
    ),
    KnownFault(
        SpecifierSet("==5.23.*", prereleases=True),
        "get_rope_index leaves a video's temporal steps out of where the text after it goes on: other ids than the "
        "paper and 4.57.6 for videos with more steps than rows and columns of tokens",
        "measured against 4.57.6: a video of grid 60 x 26 x 30 ends at id 20 instead of 65",
        only_positions=True,
        fixed_in=None,
    ),
)


def known_faults(version: str) -> list[KnownFault]:
    """What is known to be wrong with a version; empty is no proof that nothing is.

    Raises:
        UserError: `version` is no version.
    """
    try:
        parsed = Version(version)
    except InvalidVersion:
        raise UserError(f"{version!r} is no version of Transformers.") from None
    return [fault for fault in KNOWN_FAULTS if parsed in fault.versions]


def require_trustworthy(version: str, *, positions_are_given: bool) -> None:
    """Refuse a version that would compute something else than the model.

    Args:
        version: of the installed Transformers.
        positions_are_given: the caller passes its own `position_ids`, so that faults of positions alone do not matter.

    Raises:
        UserError: a known fault that matters; all of them named.
    """
    faults = [fault for fault in known_faults(version) if not (fault.only_positions and positions_are_given)]
    if faults:
        lines = "\n- ".join(
            f"{fault.what} ({fault.source}); "
            + (f"fixed in {fault.fixed_in}" if fault.fixed_in else "not fixed yet")
            for fault in faults
        )
        raise UserError(
            f"Transformers {version} is no reference for Qwen2-VL:\n- {lines}\nInstall another version."
        )
