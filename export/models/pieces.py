"""Inputs of the reference's blocks when they are traced, and PyTorch's dtypes by our names."""

from dataclasses import dataclass

import torch

from export.contract import Dim
from export.dtypes import DTYPES


@dataclass(frozen=True)
class PieceInput:
    """An input of a traced block: name, dtype, shape in the contract's letters."""

    name: str
    dtype: torch.dtype
    shape: tuple[Dim, ...]


def torch_dtype(dtype: str) -> torch.dtype:
    """A dtype of `export.dtypes`, whose names are PyTorch's."""
    found = getattr(torch, DTYPES[dtype].name)
    assert isinstance(found, torch.dtype), found
    return found
