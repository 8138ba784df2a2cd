"""Reads `quantization_config` as compressed-tensors writes it (llm-compressor): groups of layers and their numbers."""

import re

from export.models.keys import refuse_unread
from export.models.section import Section
from export.quantization.scheme import LayerGroup, LayerScheme, Scheme

_MAKE_OWN = "Start from the unquantized checkpoint, and let `qv-export export --quantize` make it small."

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
_NUMBERS = {
    ("pack-quantized", "int", 4),
    ("pack-quantized", "int", 8),
    ("int-quantized", "int", 8),
    ("naive-quantized", "int", 8),
    ("float-quantized", "float", 8),
    ("naive-quantized", "float", 8),
}
"""Format, type and bits of weights that are read."""

# How the numbers were found.
_INERT_NUMBERS = ("observer", "observer_kwargs", "actorder", "scale_dtype", "zp_dtype", "block_structure")


def read_compressed_tensors(section: Section) -> Scheme:
    """The groups of layers; problems go to the section."""
    _refuse_others(section)
    whole_format = section.get("format")
    groups = section.section("config_groups")
    found = [
        group
        for name in groups.content
        if (group := _read_group(groups.section(name), whole_format)) is not None
    ]
    if not groups.content:
        section.problem("config_groups names no group of layers")
    ignored = _patterns(section, "ignore")
    return Scheme("compressed-tensors", tuple(found), ignored)


def _refuse_others(section: Section) -> None:
    """What would change more than how weights are stored."""
    for key, what in (
        ("kv_cache_scheme", "a quantized cache of keys and values"),
        ("transform_config", "rotations"),
    ):
        if section.get(key):
            section.problem(f"{key}: {what} is not computed. {_MAKE_OWN}")
    if section.get("moe_sparsity_config"):
        section.problem("moe_sparsity_config: not computed")
    sparsity = section.get("sparsity_config")
    if sparsity and not (isinstance(sparsity, dict) and sparsity.get("format", "dense") == "dense"):
        section.problem(f"sparsity_config: weights without their zeros are not read. {_MAKE_OWN}")


def _read_group(group: Section, whole_format: object) -> LayerGroup | None:
    """One group; None where its weights are not quantized, or not as they are read here."""
    targets = _patterns(group, "targets")
    weights = group.section("weights")
    stated = group.get("format") or whole_format
    if group.get("output_activations"):
        group.problem(f"output_activations: rounding of outputs is not computed. {_MAKE_OWN}")
    activations = _read_activations(group.section("input_activations"))
    refuse_unread(group)
    if not weights.content:
        return None
    scheme = _read_weights(weights, stated, activations)
    return None if scheme is None else LayerGroup(targets, scheme)


def _read_weights(weights: Section, stated: object, activations: object) -> LayerScheme | None:
    kind, bits = weights.get("type", "int"), weights.integer("num_bits", 8)
    strategy, group_size = weights.get("strategy"), weights.get("group_size")
    if strategy is None:  # as the package itself infers it
        strategy = "tensor" if group_size is None else "channel" if group_size == -1 else "group"
    is_symmetric = weights.flag("symmetric", True)
    weights.one_of("dynamic", (False,))
    refuse_unread(weights, inert=_INERT_NUMBERS)
    if stated not in _FORMATS:
        weights.problem(f"stored in the format {stated!r:.80}, read are {', '.join(_FORMATS)}. {_MAKE_OWN}")
        return None
    if (stated, kind, bits) not in _NUMBERS:
        weights.problem(f"{bits} bits of type {kind!r:.80} in the format {stated} are not read. {_MAKE_OWN}")
        return None
    allowed = ("tensor", "channel", "group") if kind == "int" else ("tensor", "channel")
    if strategy not in allowed:
        weights.problem(f"a scale for each {strategy!r:.80} of {kind} weights is not read. {_MAKE_OWN}")
        return None
    if strategy == "group" and not (type(group_size) is int and group_size > 0):
        weights.problem(f"group_size must be a positive integer, found {group_size!r:.80}")
        return None
    if activations is not None and (bits != 8 or strategy == "group"):
        weights.problem(
            f"inputs rounded beside weights in {bits} bits or in groups are not computed. {_MAKE_OWN}"
        )
        return None
    return LayerScheme(
        "compressed",
        bits,
        "float" if kind == "float" else "int",
        group_size=group_size if strategy == "group" else None,
        is_symmetric=is_symmetric,
        is_packed=stated == "pack-quantized",
        is_scaled_whole=strategy == "tensor",
        activations="per_token"
        if activations == "per_token"
        else "static"
        if activations == "static"
        else None,
    )


def _read_activations(inputs: Section) -> object:
    """None, "per_token" or "static"."""
    if not inputs.content:
        return None
    bits, kind = inputs.integer("num_bits", 8), inputs.get("type", "int")
    strategy, dynamic = inputs.get("strategy", "tensor"), inputs.get("dynamic", False)
    symmetric = inputs.flag("symmetric", True)
    inputs.get("group_size")  # of no meaning for these strategies
    refuse_unread(inputs, inert=_INERT_NUMBERS)
    if bits == 8 and kind in {"int", "float"} and symmetric:
        if strategy == "token" and dynamic is True:
            return "per_token"
        if strategy == "tensor" and dynamic is False:
            return "static"
    inputs.problem(
        f"inputs rounded to {bits} bits of type {kind!r:.80} by {strategy!r:.80}, "
        f"dynamic {dynamic!r:.80}, symmetric {symmetric}: read are 8 bits, symmetric, by token as they come or by one "
        f"static scale. {_MAKE_OWN}"
    )
    return None


def _patterns(section: Section, key: str) -> tuple[str, ...]:
    """A list of names, and of patterns after `re:`."""
    value = section.get(key, [])
    if not (isinstance(value, list) and all(isinstance(entry, str) for entry in value)):
        section.problem(f"{key} must be a list of names of modules, found {value!r:.80}")
        return ()
    for entry in value:
        try:
            re.compile(entry.removeprefix("re:") if entry.startswith("re:") else "")
        except re.error as error:
            section.problem(f"{key}: {entry!r:.80} is no regular expression: {error}")
            return ()
    return tuple(value)
