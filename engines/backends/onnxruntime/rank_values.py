"""What the ranks of a divided decoder hold of a value, joined to what an undivided one has."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.session import Probe, Values
from export.bundle import Bundle
from export.contract import PRESENT, is_cache_name
from export.inputs import DecoderInputs
from export.models.families import family_of

Parts = Sequence[npt.NDArray[Any]]
"""Of each rank, [tokens, its columns]."""


def joined_ranks(
    parts: Sequence[Values], probes: Sequence[Probe], calls: Sequence[DecoderInputs], bundle: Bundle
) -> Values:
    """One rank's values for all.

    Args:
        parts: what the probes showed, and the cache, by rank.
        probes: what was asked.
        calls: that were run.
        bundle: whose decoder it is.
    """
    family, found = family_of(bundle.config.model_type), dict(parts[0])
    for name in filter(is_cache, found):
        found[name] = _side_by_side([part[name] for part in parts], bundle, is_of_keys=True)
    for probe in probes:
        of_ranks = [part[probe.value] for part in parts]
        joint = family.joint_of(probe.reference)
        if probe.reference.endswith("embed_tokens:out"):
            found[probe.value] = _of_owners(of_ranks, calls, bundle)
        elif joint == "summed":
            found[probe.value] = np.sum(of_ranks, axis=0)
        elif joint == "side by side" and of_ranks[0].shape[1] != bundle.config.decoder.vocab_size:
            is_of_keys = any(part in probe.reference for part in ("k_proj", "v_proj", "rotated_k"))
            found[probe.value] = _side_by_side(of_ranks, bundle, is_of_keys=is_of_keys)
    return found


def is_cache(name: str) -> bool:
    return is_cache_name(name, PRESENT)


def _side_by_side(parts: Parts, bundle: Bundle, *, is_of_keys: bool) -> npt.NDArray[Any]:
    """Heads of keys that several ranks share are taken once, as are tokens that the last rank has too."""
    if is_of_keys:
        parts = parts[:: max(1, len(parts) // bundle.config.decoder.num_key_value_heads)]
    part = bundle.rank_config.decoder
    if parts[0].shape[1] == part.tokens_of_rank and not is_of_keys:
        num_twice = part.tokens_of_rank * part.num_ranks - part.vocab_size
        parts = [*parts[:-1], parts[-1][:, num_twice:]]
    return np.concatenate(parts, axis=1)


def _of_owners(parts: Parts, calls: Sequence[DecoderInputs], bundle: Bundle) -> npt.NDArray[Any]:
    """Rows of the table, each of the rank that has its token: the others looked up any."""
    tokens = np.concatenate([call.token_ids.reshape(-1) for call in calls])
    owners = tokens // bundle.rank_config.decoder.tokens_of_rank
    rows: npt.NDArray[Any] = np.stack(parts)[owners, np.arange(len(tokens))]
    return rows
