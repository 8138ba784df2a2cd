"""How a quantized checkpoint stores its linear layers, as `quantization_config` of its `config.json` says."""

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from export.weights.names import published_name

Layout: TypeAlias = Literal["awq", "gptq", "compressed"]


@dataclass(frozen=True)
class LayerScheme:
    """How a layer's weight [N, K] is stored, and how its input is rounded."""

    layout: Layout
    """Which tensors it has, and how codes lie in them: a module of `export.quantization.layouts`."""
    bits: int
    kind: Literal["int", "float"] = "int"
    group_size: int | None = None
    """How many inputs share a scale; None: all."""
    is_symmetric: bool = False
    """Whether the middle code means 0 everywhere, as the file says."""
    is_packed: bool = True
    """Whether several codes share a 32-bit word."""
    are_zeros_less_one: bool = False
    """Whether stored zero points are 1 less than they mean."""
    is_scaled_whole: bool = False
    """Whether one scale serves the whole weight."""
    activations: Literal["per_token", "static"] | None = None
    """How x is rounded before the product; None: not at all."""

    def __str__(self) -> str:
        """Such as "int4 in groups of 128, asymmetric"."""
        name = "fp8" if self.kind == "float" else f"int{self.bits}"
        if self.group_size:
            scope = f" in groups of {self.group_size}"
        else:
            scope = " by one scale" if self.is_scaled_whole else " by rows"
        zeros = "" if self.is_symmetric or self.kind == "float" else ", asymmetric"
        inputs = {None: "", "per_token": ", inputs by token", "static": ", inputs by a static scale"}
        return f"{name}{scope}{zeros}{inputs[self.activations]}"


@dataclass(frozen=True)
class LayerGroup:
    """Layers that are stored alike."""

    targets: tuple[str, ...]
    """Names of modules, patterns after `re:`, or `Linear` for all."""
    scheme: LayerScheme


@dataclass(frozen=True)
class Scheme:
    """How a checkpoint's linear layers are stored: those that have such tensors, of those that the lists leave."""

    source: str
    """As its users call it: "AWQ", "GPTQ", "compressed-tensors"."""
    groups: tuple[LayerGroup, ...]
    ignored: tuple[str, ...] = ()
    """Layers that are not quantized: names of modules, patterns after `re:`, parts of names after `part:`."""

    def of(self, module: str, stored_module: str) -> LayerScheme | None:
        """The scheme of a layer; None where the lists leave it out.

        Args:
            module: its published name, such as `model.layers.0.mlp.up_proj`.
            stored_module: its name in the file.
        """
        names = (module, stored_module)
        if any(_names_module(entry, names) for entry in self.ignored):
            return None
        # compressed-tensors takes an exact name before a pattern, and a pattern before a class.
        groups = sorted(
            (_precision_of(target), index, group.scheme)
            for index, group in enumerate(self.groups)
            for target in group.targets
            if target == "Linear" or _names_module(target, names)
        )
        return groups[0][2] if groups else None

    def __str__(self) -> str:
        """Such as "AWQ: int4 in groups of 128, asymmetric"."""
        return f"{self.source}: {'; '.join(str(group.scheme) for group in self.groups)}"


def _precision_of(target: str) -> int:
    return 2 if target == "Linear" else 1 if target.startswith("re:") else 0


def _names_module(entry: str, names: tuple[str, str]) -> bool:
    """Whether an entry of a list is about a module, by its published or by its stored name."""
    kind, _, pattern = entry.partition(":")
    if kind == "re" and pattern:
        return any(re.match(pattern, name) for name in names)
    if kind == "part" and pattern:
        return any(pattern in name for name in names)
    # A list was written with whatever names the tool knew.
    published = published_name(f"{entry}.weight")[0].removesuffix(".weight")
    return entry in names or published in names
