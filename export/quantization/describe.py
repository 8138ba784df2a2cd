"""How the linear layers of a bundle are stored, in words."""

from collections import Counter
from collections.abc import Iterable, Mapping

from export.models.configuration import KvCachePrecision
from export.quantization.side_file import StoredLinear

_INPUTS = {None: "", "per_token": ", inputs rounded by token", "static": ", inputs rounded by a static scale"}


KV_CACHE_PART = "KV cache"


def precision_of(
    linears: Mapping[str, StoredLinear],
    tools: Mapping[str, str],
    kv_cache: KvCachePrecision | None = None,
    kept: Iterable[str] = (),
    dtype: str = "",
) -> dict[str, str]:
    """By part of the model ("vision", "decoder", "head", "KV cache"), those that are stored otherwise than computed.

    Args:
        linears: by the published name of the weight.
        tools: who quantized it, of those that the checkpoint had so.
        kv_cache: of cached keys and values.
        kept: names of weights that stay as they are among those, for their error.
        dtype: what these are computed in.
    """
    parts: dict[str, Counter[str]] = {}
    for name, linear in linears.items():
        words = _words(linear) + (f", by {tools[name]}" if name in tools else "")
        parts.setdefault(_part_of(name), Counter())[words] += 1
    for name in kept:
        parts.setdefault(_part_of(name), Counter())[f"{dtype}, kept for their error"] += 1
    described = {
        part: "; ".join(f"{words} ({count} layers)" for words, count in kinds.most_common())
        if len(kinds) > 1
        else next(iter(kinds))
        for part, kinds in sorted(parts.items())
    }
    if kv_cache is not None:
        described[KV_CACHE_PART] = f"{kv_cache}, a scale for each token and head"
    return described


def _words(linear: StoredLinear) -> str:
    precision = "int8" if linear.num_planes > 1 else linear.precision
    scope = "by rows" if linear.num_blocks == 1 else f"in groups of {linear.block}"
    # The low plane of 8-bit codes has zero points always.
    zeros = "" if linear.is_symmetric or linear.num_planes > 1 else ", asymmetric"
    return f"{precision} {scope}{zeros}{_INPUTS[linear.activations]}"


def _part_of(name: str) -> str:
    if name.startswith("visual."):
        return "vision"
    return "decoder" if name.startswith("model.layers.") else "head"
