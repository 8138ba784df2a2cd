"""What is known about an engine once it was built.

`EngineFacts` may travel from a building process to its parent, and stands in the engine's record as JSON.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from export.contract import GraphName

Implementation = Literal["plugin", "native", "decomposed"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeRange:
    """One input's shapes in one optimization profile."""

    minimum: Shape
    optimum: Shape
    maximum: Shape


@dataclass(frozen=True)
class TensorFacts:
    """One input or output of the engine."""

    name: str
    dtype: str
    """As `export.contract` names it."""
    shape: tuple[Any, ...]
    """-1, or the contract's letter, where it is dynamic."""
    profiles: tuple[ShapeRange, ...] = ()
    """Of an input, in the engine's order of profiles; empty for an output."""


@dataclass(frozen=True)
class LayerFacts:
    """One layer of the library's network, before its optimizer fuses layers; or one node of a graph."""

    name: str
    type: str
    dtype: str
    """Of its first output."""
    node: str
    """The ONNX node it came from, the call's node for a function; empty where the parser does not say."""
    op: str
    """The op of ours that it is a part of; empty for a standard one."""


@dataclass(frozen=True)
class WarningFacts:
    """Warnings of the library that differ in names and numbers alone."""

    message: str
    """The first of them."""
    count: int
    is_expected: bool = False
    """Every sound build gives it, and it asks the user for nothing."""


@dataclass(frozen=True)
class EngineFacts:
    """One built engine."""

    graph: GraphName
    target: str
    """The backend that built it."""
    tools: Mapping[str, str]
    """Version of every package that shapes the engine's bytes."""
    sm: tuple[int, ...]
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    layers: tuple[LayerFacts, ...]
    ops: Mapping[str, Implementation]
    """Who computes each op of ours."""
    warnings: tuple[WarningFacts, ...]
    seconds: float
    """Wall time in the building process, imports excluded."""
    peak_rss_bytes: int
    """Of the building process, mapped weights included."""
    engine_bytes: int
    weights_bytes: int | None = None
    """Device memory for weights, as the library's log says; None where it does not."""
    activation_bytes: tuple[int, ...] = ()
    """Device memory for activations in each profile, as the library's log says."""
    notes: tuple[str, ...] = ()
    """What is unusual about how it computes, as sentences for the user."""

    def to_json_object(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json_object(cls, content: Mapping[str, Any]) -> "EngineFacts":
        """The facts that `to_json_object` gave, after a way through JSON.

        Raises:
            KeyError, TypeError: other content.
        """
        return cls(
            **{
                **content,
                "sm": tuple(content["sm"]),
                "inputs": tuple(map(_tensor_facts, content["inputs"])),
                "outputs": tuple(map(_tensor_facts, content["outputs"])),
                "layers": tuple(LayerFacts(**layer) for layer in content["layers"]),
                "warnings": tuple(WarningFacts(**warning) for warning in content["warnings"]),
                "activation_bytes": tuple(content["activation_bytes"]),
                "notes": tuple(content["notes"]),
            }
        )


def _tensor_facts(content: Mapping[str, Any]) -> TensorFacts:
    profiles = tuple(
        ShapeRange(**{name: tuple(shape) for name, shape in profile.items()})
        for profile in content["profiles"]
    )
    return TensorFacts(content["name"], content["dtype"], tuple(content["shape"]), profiles)
