"""What does this machine have: packages, cores, memory, GPUs, and which targets can it serve?"""

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import TYPE_CHECKING

from engines.gpus import GpuFacts, gpu_facts
from engines.packages import installed_version
from export.errors import UserError

if TYPE_CHECKING:
    from engines.backends.base import Backend


@dataclass(frozen=True)
class PackageFacts:
    """A package that qv-export names, and what is installed."""

    name: str
    extra: str
    """The extra that asks for it; empty for a package that is always needed."""
    required: str
    installed: str | None
    fits: bool


@dataclass(frozen=True)
class TargetFacts:
    """Whether engines of a target can be built and run here."""

    name: str
    version: str | None
    """Of its library; None where it is missing or too old."""
    builds: bool
    runs: bool
    advice: str


@dataclass(frozen=True)
class MachineFacts:
    """What `doctor` shows."""

    python: str
    platform: str
    num_cores: int
    memory_bytes: int
    disk_free_bytes: int
    gpus: tuple[GpuFacts, ...]
    packages: tuple[PackageFacts, ...]
    targets: tuple[TargetFacts, ...]
    warnings: tuple[str, ...]


def machine_facts() -> MachineFacts:
    """Look around. Finds nothing where there is nothing: a machine without a GPU is no error."""
    packages, gpus = package_facts(requires("qv-export") or ()), gpu_facts()
    return MachineFacts(
        python=platform.python_version(),
        platform=platform.platform(),
        num_cores=len(os.sched_getaffinity(0)),
        memory_bytes=memory_bytes(),
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
        gpus=gpus,
        packages=packages,
        targets=target_facts(gpus),
        warnings=package_warnings(packages),
    )


def package_facts(requirements: Sequence[str]) -> tuple[PackageFacts, ...]:
    """Compare requirement strings, as in the package's metadata, with what is installed."""
    from packaging.requirements import Requirement

    facts = []
    for requirement in map(Requirement, requirements):
        extra = str(requirement.marker).partition("extra == ")[2].strip("\"'") if requirement.marker else ""
        required = ",".join(sorted(map(str, requirement.specifier), reverse=True))
        installed = installed_version(requirement.name)
        fits = installed is not None and requirement.specifier.contains(installed, prereleases=True)
        facts.append(PackageFacts(requirement.name, extra, required, installed, fits))
    return tuple(facts)


def package_warnings(packages: Sequence[PackageFacts]) -> tuple[str, ...]:
    """What is installed and does not fit, or fits badly together."""
    warnings = [
        f"{package.name} {package.installed or 'is missing'}: {package.required} is needed. "
        f"pip install '{package.name}{package.required}'"
        for package in packages
        if not package.fits and (package.installed or not package.extra)
    ]
    installed = {package.name for package in packages if package.installed}
    if {"onnxruntime", "onnxruntime-gpu"} <= installed:
        warnings.append(
            "onnxruntime and onnxruntime-gpu share one module. To be sure that the GPU's is used: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
        )
    return tuple(warnings)


def memory_bytes() -> int:
    """RAM that this process may use: the machine's, or its container's limit."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical


def target_facts(gpus: Sequence[GpuFacts]) -> tuple[TargetFacts, ...]:
    """What each backend can do here, and what is missing for it."""
    from engines.backends import BACKENDS

    return tuple(_target_facts(backend, gpus) for backend in BACKENDS.values())


def _target_facts(backend: "Backend", gpus: Sequence[GpuFacts]) -> TargetFacts:
    version = backend.version()
    try:
        backend.architectures((), lambda: gpus)
        builds = version is not None
    except UserError:
        builds = False
    serves = backend.device == "cpu" or any(backend.serves(gpu.sm) for gpu in gpus)
    return TargetFacts(backend.name, version, builds, version is not None and serves, backend.advice(gpus))
