"""Which targets are there, what does each need to build and to run, and what of it is installed?

Versions come from package metadata: nothing here imports ONNX Runtime, TensorRT or torch, so a build that finds its
engine in the cache answers at once.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from packaging.version import Version

from engines.backends.tensorrt.flavour import (
    FLAVOURS,
    MODULES,
    REMEDIES,
    RTX_ARCHITECTURES,
    TENSORRT_LEAST_ARCHITECTURE,
    require_installed,
)
from export.errors import UserError

TargetName = Literal["onnxruntime", "tensorrt-rtx", "tensorrt"]
TARGET_NAMES: tuple[TargetName, ...] = ("onnxruntime", "tensorrt-rtx", "tensorrt")

MIN_TENSORRT_VERSION = "11.1"
"""The first with the native attention that our graphs use."""


@dataclass(frozen=True)
class Target:
    """One consumer of a bundle's graphs."""

    name: TargetName
    modules: tuple[str, ...]
    """Python modules, any of which serves."""
    distributions: tuple[str, ...]
    """Packages, the first installed of which tells the version."""
    install: str
    sources: tuple[str, ...]
    """Our own packages whose code shapes what is built."""
    min_driver: int | None
    """Oldest branch of NVIDIA's driver: CUDA 13's is 580 (CUDA Toolkit release notes, table of driver versions)."""


TARGETS: Mapping[TargetName, Target] = {
    "onnxruntime": Target(
        "onnxruntime",
        modules=("onnxruntime",),
        distributions=("onnxruntime", "onnxruntime-gpu"),
        install="pip install onnxruntime",
        sources=("engines/backends/onnxruntime", "plugins"),
        min_driver=None,
    ),
    "tensorrt-rtx": Target(
        "tensorrt-rtx",
        modules=MODULES["tensorrt-rtx"],
        distributions=("tensorrt-rtx-cu13-libs", "tensorrt-rtx"),
        install=REMEDIES["tensorrt-rtx"],
        sources=("engines/backends/tensorrt", "plugins"),
        min_driver=580,
    ),
    "tensorrt": Target(
        "tensorrt",
        modules=MODULES["tensorrt"],
        distributions=("tensorrt-cu13", "tensorrt"),
        install=REMEDIES["tensorrt"],
        sources=("engines/backends/tensorrt", "plugins"),
        min_driver=580,
    ),
}


def has_module(name: str) -> bool:
    return find_spec(name) is not None


def installed_version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def target_version(target: Target) -> str | None:
    """Version of a target's library, or None where it cannot be imported or is too old to be used."""
    if not any(map(has_module, target.modules)):
        return None
    found = next(filter(None, map(installed_version, target.distributions)), None)
    if found and target.name == "tensorrt" and Version(found) < Version(MIN_TENSORRT_VERSION):
        return None
    return found


def require_target(target: TargetName) -> None:
    """Check that a target's library is there, before anything takes long.

    Raises:
        UserError: it is not installed, or too old.
    """
    if target not in FLAVOURS:
        return  # ONNX Runtime is a requirement of qv-export itself
    others = [name for name in FLAVOURS if name != target and target_version(TARGETS[name])]
    hint = "".join(f"\n{name} is installed: --target {name} builds with that." for name in others)
    try:
        require_installed(target)
    except UserError as error:
        raise UserError(f"{error}{hint}") from None
    if target_version(TARGETS[target]) is None:
        raise UserError(
            f"Target {target} needs version {MIN_TENSORRT_VERSION} or newer, which is not installed. "
            f"Install it: {REMEDIES[target]}{hint}"
        )


def tool_versions(target: Target) -> dict[str, str]:
    """Version of everything installed that shapes the bytes of an engine."""
    names = ("qv-export", "onnx", *target.distributions)
    return {name: found for name in names if (found := installed_version(name))}


def sources_digest(target: Target) -> str:
    """Digest of our own code that shapes what is built: a changed function body or builder makes another engine."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for source in target.sources:
        for path in sorted((root / source).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def serves_sm(target: TargetName, sm: int) -> bool:
    """True if a target builds for an architecture.

    Args:
        target: the target.
        sm: compute capability x 10.
    """
    if target == "tensorrt-rtx":
        return sm in RTX_ARCHITECTURES
    return target == "onnxruntime" or sm >= TENSORRT_LEAST_ARCHITECTURE
