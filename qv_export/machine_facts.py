"""What does this machine have: packages, cores, memory, GPUs, and which targets can it serve?"""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

# Compute capabilities that a TensorRT-RTX engine of ours runs on, and the least for TensorRT.
_RTX_CAPABILITIES = {(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)}
_TENSORRT_CAPABILITY = (8, 0)
_TENSORRT_VERSION = "11.1"


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
class GpuFacts:
    """A GPU as `nvidia-smi` sees it."""

    name: str
    driver: str
    compute_capability: tuple[int, int]
    memory_mib: int


@dataclass(frozen=True)
class TargetFacts:
    """Whether engines of a target can be built and run here."""

    name: str
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


def installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


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


def gpu_facts() -> tuple[GpuFacts, ...]:
    """Ask `nvidia-smi`; a machine without it, or without a working driver, has no GPU."""
    query = "--query-gpu=name,driver_version,compute_cap,memory.total"
    try:
        answer = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return gpu_facts_from_csv(answer.stdout)


def gpu_facts_from_csv(text: str) -> tuple[GpuFacts, ...]:
    """Parse the lines of `nvidia-smi`; a field that it does not know reads [N/A]."""
    gpus = []
    for line in text.splitlines():
        name, driver, capability, memory = (field.strip() for field in line.rsplit(",", 3))
        major, _, minor = capability.partition(".")
        gpus.append(GpuFacts(name, driver, (_integer(major), _integer(minor)), _integer(memory)))
    return tuple(gpus)


def _integer(text: str) -> int:
    return int(text) if text.isdigit() else 0


def target_facts(gpus: Sequence[GpuFacts]) -> tuple[TargetFacts, ...]:
    """What each target needs to build and to run, and what is missing for it here."""
    capabilities = [gpu.compute_capability for gpu in gpus]
    return (
        TargetFacts(
            "onnxruntime",
            has_module("onnxruntime"),
            has_module("onnxruntime"),
            "CPU; CUDA with 'qv-export[gpu]'",
        ),
        _rtx_facts(capabilities),
        _tensorrt_facts(capabilities),
    )


def _rtx_facts(capabilities: Sequence[tuple[int, int]]) -> TargetFacts:
    if not (has_module("tensorrt_rtx_bindings") or has_module("tensorrt_rtx")):
        return TargetFacts("tensorrt-rtx", False, False, "builds on any CPU: pip install 'qv-export[rtx]'")
    runs = any(capability in _RTX_CAPABILITIES for capability in capabilities)
    return TargetFacts(
        "tensorrt-rtx", True, runs, "" if runs else "runs on NVIDIA GPUs SM75 to SM89 and SM120"
    )


def _tensorrt_facts(capabilities: Sequence[tuple[int, int]]) -> TargetFacts:
    from packaging.version import Version

    found = installed_version("tensorrt") or installed_version("tensorrt-cu13") or "0"
    has_tensorrt = has_module("tensorrt") and Version(found) >= Version(_TENSORRT_VERSION)
    works = has_tensorrt and any(capability >= _TENSORRT_CAPABILITY for capability in capabilities)
    advice = f"needs an NVIDIA GPU (SM80 and up) and TensorRT {_TENSORRT_VERSION} or newer: pip install tensorrt-cu13"
    return TargetFacts("tensorrt", works, works, "" if works else advice)


def has_module(name: str) -> bool:
    return find_spec(name) is not None
