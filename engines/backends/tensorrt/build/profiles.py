"""Optimization profiles: the shapes that an engine is compiled for.

The contract names each dynamic dim by a letter; a profile gives every letter its smallest, its typical and its largest
size. Vision has one profile. The decoder has two, prefill and decode, since a step of one token wants other kernels
than a chunk of thousands.
"""

from collections.abc import Iterator, Mapping, Sequence

from engines.backends.facts import ShapeRange
from engines.sizing.limits import Limits
from export.checkpoint.config import ModelConfig
from export.contract import MAX_ASKED, GraphContract, GraphName, TensorSpec
from export.errors import UserError

Sizes = tuple[int, int, int]
"""Smallest, typical, largest size of a dim."""

Profile = Mapping[str, Sizes]
"""By letter of the contract."""

PREFILL, DECODE = 0, 1
"""The decoder's profiles, in the engine's order."""

_TYPICAL_PATCHES = 4096  # a picture of 0.8 megapixels
_MAX_ELEMENTS = 2**31 - 1  # of one tensor in TensorRT


def graph_profiles(graph: GraphName, config: ModelConfig, limits: Limits) -> tuple[Profile, ...]:
    """The optimization profiles of a graph's engine, in order."""
    if graph == "vision":
        return (vision_profile(config, limits),)
    return (prefill_profile(limits), decode_profile(limits))


def vision_profile(config: ModelConfig, limits: Limits) -> Profile:
    smallest = config.vision.spatial_merge_size**2  # one token
    typical = min(_TYPICAL_PATCHES, limits.max_patches)
    return {
        "P": (smallest, typical, limits.max_patches),
        "N + 1": (2, 2, limits.max_segments + 1),
        "M": (smallest, typical, limits.max_patches),
    }


def prefill_profile(limits: Limits) -> Profile:
    """A chunk of prompts; every token may be a visual one, and none has to be."""
    tokens = limits.prompt_tokens
    return {
        "B": (1, 1, limits.max_batch),
        "S": (1, tokens, tokens),
        "V": (0, tokens // 2, limits.max_batch * tokens),
        "Q": (1, 1, min(limits.max_logits_tokens, tokens)),
        "A": _constant(MAX_ASKED),
        "L": _constant(limits.max_context),
    }


def decode_profile(limits: Limits) -> Profile:
    """One token a row, none of them visual: a pad id that the model itself wrote is plain text."""
    return {
        "B": (1, limits.max_batch, limits.max_batch),
        "S": _constant(1),
        "V": _constant(0),
        "Q": _constant(1),
        "A": _constant(MAX_ASKED),
        "L": _constant(limits.max_context),
    }


def shape_ranges(contract: GraphContract, profile: Profile) -> Iterator[tuple[str, ShapeRange]]:
    """Each input that has a dynamic dim, with its shapes in the profile. L is no dynamic dim: it was made constant."""
    for spec in contract.inputs:
        if any(isinstance(dim, str) and dim != "L" for dim in spec.shape):
            yield spec.name, ShapeRange(*(_shape(spec, profile, i) for i in range(3)))


def _shape(spec: TensorSpec, profile: Profile, which: int) -> tuple[int, ...]:
    return tuple(profile[dim][which] if isinstance(dim, str) else dim for dim in spec.shape)


def fits(shapes: Mapping[str, Sequence[int]], ranges: Mapping[str, ShapeRange]) -> bool:
    """True if a profile serves a call of these shapes."""
    return all(
        len(shape) == len(ranges[name].minimum)
        and all(
            map(
                lambda low, size, high: low <= size <= high, ranges[name].minimum, shape, ranges[name].maximum
            )
        )
        for name, shape in shapes.items()
        if name in ranges
    )


def _constant(size: int) -> Sizes:
    return (size, size, size)


def require_small_padding(config: ModelConfig, limits: Limits) -> None:
    """The native vision attention pads every segment to the longest: its tensors have N * M rows.

    Raises:
        UserError: limits that make such a tensor larger than TensorRT takes.
    """
    rows = limits.max_segments * limits.max_patches
    channels = config.vision.embed_dim
    if rows * channels > _MAX_ELEMENTS:
        raise UserError(
            f"max_segments {limits.max_segments} x max_patches {limits.max_patches} x {channels} channels are more "
            f"than the {_MAX_ELEMENTS:,} elements that a tensor of TensorRT may have.",
            f"Lower one of them: "
            f"at most {_MAX_ELEMENTS // (channels * limits.max_patches)} segments of that many patches fit.",
        )
