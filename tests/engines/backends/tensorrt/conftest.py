"""Engines that the tests of TensorRT share, each built once, by TensorRT-RTX on the CPU."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engines.backends.tensorrt.build.builder import BuildOptions, EngineFacts, GraphName, build_engine
from engines.sizing.limits import Limits
from export.bundle import open_bundle
from tests.support.bundles import shared_bundle

LIMITS = Limits(max_patches=1024, max_segments=8, max_batch=4, max_context=512)
ARCHITECTURES = (80, 89, 120)


@dataclass
class Built:
    """One engine, and what its build told."""

    path: Path
    facts: EngineFacts
    progress: list[tuple[str, float]] = field(default_factory=list)


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a small checkpoint of that dtype, exported when first asked for."""
    return lambda dtype: shared_bundle(tmp_path_factory, {"dtype": dtype})


@pytest.fixture(scope="session")
def built(bundle_of, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, GraphName], Built]:
    """The engine of a dtype and a graph for all of `ARCHITECTURES`, built when first asked for."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX: pip install 'qv-export[rtx]'")
    directory = tmp_path_factory.mktemp("engines")
    engines: dict[tuple[str, GraphName], Built] = {}

    def build(dtype: str, graph: GraphName) -> Built:
        if (dtype, graph) not in engines:
            path, progress = directory / f"{dtype}-{graph}.engine", []
            facts = build_engine(
                open_bundle(bundle_of(dtype)),
                graph,
                LIMITS,
                BuildOptions("tensorrt-rtx", ARCHITECTURES),
                path,
                lambda phase, fraction: progress.append((phase, fraction)),
            )
            engines[dtype, graph] = Built(path, facts, progress)
        return engines[dtype, graph]

    return build
