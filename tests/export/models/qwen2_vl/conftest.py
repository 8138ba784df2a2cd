"""Models that the tests of the reference share, each shape written and loaded once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.cases import SHAPES


@dataclass(frozen=True)
class Pair:
    """One checkpoint in both implementations, float32."""

    checkpoint: Path
    reference: Any
    peer: Any


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """These tensors are too small to share: a second thread only makes both wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=SHAPES, ids=lambda shape: shape.name)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    from examples.random_checkpoint import write_checkpoint
    from export.models.qwen2_vl.model import load_reference
    from tests.support.peers import load_peer

    directory = tmp_path_factory.mktemp(request.param.name) / "checkpoint"
    checkpoint = write_checkpoint(directory, **request.param.arguments())
    return Pair(checkpoint, load_reference(checkpoint), load_peer(checkpoint))
