"""What does this machine have: packages, cores, memory, GPUs, and which targets can it serve?"""

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

from engines.gpus import GpuFacts, gpu_facts
from engines.targets import (
    MIN_TENSORRT_VERSION,
    TARGETS,
    installed_version,
    serves_sm,
    target_version,
)


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
    """What each target needs to build and to run, and what is missing for it here."""
    return (
        _onnxruntime_facts(),
        _rtx_facts(gpus),
        _tensorrt_facts(gpus),
    )


def _onnxruntime_facts() -> TargetFacts:
    version = target_version(TARGETS["onnxruntime"])
    has_library = version is not None
    return TargetFacts("onnxruntime", version, has_library, has_library, "CPU; CUDA with 'qv-export[gpu]'")


def _rtx_facts(gpus: Sequence[GpuFacts]) -> TargetFacts:
    target = TARGETS["tensorrt-rtx"]
    version = target_version(target)
    if version is None:
        return TargetFacts(target.name, None, False, False, f"builds on any CPU: {target.install}")
    runs = any(serves_sm(target.name, gpu.sm) for gpu in gpus)
    advice = "" if runs else "builds for any of its GPUs here; runs on NVIDIA GPUs SM75 to SM89 and SM120"
    return TargetFacts(target.name, version, True, runs, advice)


def _tensorrt_facts(gpus: Sequence[GpuFacts]) -> TargetFacts:
    target = TARGETS["tensorrt"]
    version = target_version(target)
    works = version is not None and any(serves_sm(target.name, gpu.sm) for gpu in gpus)
    advice = (
        f"needs an NVIDIA GPU (SM80 and up) and TensorRT {MIN_TENSORRT_VERSION} or newer: {target.install}"
    )
    return TargetFacts(target.name, version, works, works, "" if works else advice)
