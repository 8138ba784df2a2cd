"""Which of TensorRT's warnings ask the user for nothing.

The record keeps every warning; `build` shows those that are not listed here.
"""

import re
from collections.abc import Iterable
from dataclasses import replace

from engines.backends.facts import WarningFacts

_EXPECTED = tuple(
    map(
        re.compile,
        (
            # token_ids, write_index, top_ids and the like are int64 by the contract, and our sessions bind them so.
            r"^Make sure (in|out)put \S+ has Int64 binding\.",
        ),
    )
)


def judged(warnings: Iterable[WarningFacts]) -> tuple[WarningFacts, ...]:
    """The same warnings, each with whether it is one that every sound build gives."""
    return tuple(
        replace(warning, is_expected=any(pattern.match(warning.message) for pattern in _EXPECTED))
        for warning in warnings
    )
