"""What of a family's reference is traced for a graph, and where copies of each piece go.

A family says this once (`Family.pieces`); `export/graphs` knows no architecture.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from export.contract import Dim, GraphContract
from export.dtypes import DTYPES


@dataclass(frozen=True)
class PieceInput:
    """An input of a traced piece: name, dtype, shape in the contract's letters."""

    name: str
    dtype: torch.dtype
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Copy:
    """One place in the graph where a piece's nodes stand."""

    scope: str
    """Of its nodes' names, e.g. `layers.3`."""
    module: str
    """The module of the reference that computes it, whose weights it takes; "" for a method of the whole model."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Values of the graph by the piece's own names of its inputs and outputs, where they differ:
    `past_key` is `past_key.3` in the third layer."""


@dataclass(frozen=True)
class Piece:
    """A block of the reference, traced once."""

    build: Callable[[], nn.Module]
    """Makes the module; called under fake tensors, so that weights take no memory."""
    inputs: Sequence[PieceInput]
    outputs: Sequence[str]
    copies: Sequence[Copy]
    method: str = "forward"


@dataclass(frozen=True)
class GraphRecipe:
    """A graph as its pieces, in the order in which they run. A value keeps its name from its maker to its readers."""

    contract: GraphContract
    pieces: Sequence[Piece]
    tables: Mapping[str, Tensor]
    """Small constants by name, computed instead of stored."""
    tables_scope: str
    doc: str


def contract_inputs(contract: GraphContract, names: Iterable[str]) -> list[PieceInput]:
    """Inputs of the graph as inputs of a piece."""
    specs = [contract.input(name) for name in names]
    return [PieceInput(spec.name, torch_dtype(spec.dtype), spec.shape) for spec in specs]


def table_inputs(tables: Mapping[str, Tensor]) -> list[PieceInput]:
    """Constants as inputs of a piece: all of its copies share them."""
    return [PieceInput(name, table.dtype, tuple(table.shape)) for name, table in tables.items()]


def torch_dtype(dtype: str) -> torch.dtype:
    """A dtype of `export.dtypes`, whose names are PyTorch's."""
    found = getattr(torch, DTYPES[dtype].name)
    assert isinstance(found, torch.dtype), found
    return found
