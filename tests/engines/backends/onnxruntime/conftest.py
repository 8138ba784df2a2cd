"""Bundles that the tests of ONNX Runtime share, each exported once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from engines.backends.onnxruntime.session import OnnxRuntimeDecoder, OnnxRuntimeVision
from export.bundle import WeightsMode, open_bundle
from tests.support.cases import SHAPES, Shape

NUM_SLOTS, CAPACITY = 5, 224
SHAPE = {shape.name: shape for shape in SHAPES}


@dataclass(frozen=True)
class Variant:
    """How a shape is exported. `dtype` None: as the checkpoint is stored."""

    shape: Shape
    weights: WeightsMode = "copy"
    dtype: str | None = None


VARIANTS = {
    "float32_copied": Variant(SHAPE["ratio6_dim128"]),
    "float32_linked_shards": Variant(SHAPE["ratio8_dim64"], weights="link"),
    "float16": Variant(SHAPE["ratio8_dim32_half"]),
    "bfloat16": Variant(SHAPE["ratio1_dim128_bfloat"]),
    "float32_of_bfloat16": Variant(SHAPE["ratio1_dim128_bfloat"], dtype="float32"),
    "yarn": Variant(SHAPE["yarn_dim32"]),
}


@dataclass(frozen=True)
class Engine:
    """One bundle, opened, and the float32 reference of the same weights."""

    variant: Variant
    bundle: Path
    reference: Any
    vision: OnnxRuntimeVision
    decoder: OnnxRuntimeDecoder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """The reference's tensors are too small to share: a second thread only makes both wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def open_engine(variant: Variant, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    from export.models.qwen2_vl.model import load_reference
    from tests.support.bundles import shared_bundle

    bundle = shared_bundle(
        tmp_path_factory, variant.shape.arguments(), dtype=variant.dtype, weights=variant.weights
    )
    opened = open_bundle(bundle)
    vision = OnnxRuntimeVision(opened)
    decoder = OnnxRuntimeDecoder(opened, NUM_SLOTS, CAPACITY)
    return Engine(variant, bundle, load_reference(bundle), vision, decoder)


@pytest.fixture(scope="session")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A self-contained float32 bundle of the published head sizes: 128 in the decoder, 80 in the vision encoder."""
    return open_engine(VARIANTS["float32_copied"], tmp_path_factory)


_SELDOM_ALONE = {"float32_linked_shards", "float16"}
"""How weights are held, and the half type that the CPU widens like bfloat16: what breaks them breaks others too."""
_PARAMETERS = [
    pytest.param(name, marks=pytest.mark.slow) if name in _SELDOM_ALONE else name for name in VARIANTS
]


@pytest.fixture(scope="session", params=_PARAMETERS)
def engine(
    request: pytest.FixtureRequest, copied: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    """Each variant in turn."""
    if request.param == "float32_copied":
        return copied
    return open_engine(VARIANTS[request.param], tmp_path_factory)
