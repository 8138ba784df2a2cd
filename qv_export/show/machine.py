"""Facts about this machine: packages, cores, memory, GPUs, and what can be done on it."""

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
from export.install import DISTRIBUTION, package_command
from qv_export.show.jobs import JobFacts, TargetFacts, job_facts

if TYPE_CHECKING:
    from engines.backends.base import Backend


ONNXRUNTIME_PACKAGES = ("onnxruntime", "onnxruntime-gpu")


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
    jobs: tuple[JobFacts, ...]
    warnings: tuple[str, ...]


def machine_facts() -> MachineFacts:
    """Look around. Finds nothing where there is nothing: a machine without a GPU is no error."""
    packages, gpus = package_facts(requires("qv-export") or ()), gpu_facts()
    targets = target_facts(gpus)
    return MachineFacts(
        python=platform.python_version(),
        platform=platform.platform(),
        num_cores=len(os.sched_getaffinity(0)),
        memory_bytes=memory_bytes(),
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
        gpus=gpus,
        packages=packages,
        targets=targets,
        jobs=job_facts(targets),
        warnings=package_warnings(packages),
    )


def package_facts(requirements: Sequence[str]) -> tuple[PackageFacts, ...]:
    """Compare requirement strings, as in the package's metadata, with what is installed."""
    from packaging.requirements import Requirement

    facts = []
    for requirement in map(Requirement, requirements):
        if requirement.name == DISTRIBUTION:  # an extra that takes in others
            continue
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
        f"Install it: {package_command(package.name + package.required)}"
        for package in packages
        if not package.fits and (package.installed or not package.extra)
    ]
    installed = {package.name for package in packages if package.installed}
    if set(ONNXRUNTIME_PACKAGES) <= installed | set(filter(installed_version, ONNXRUNTIME_PACKAGES)):
        warnings.append(
            "onnxruntime and onnxruntime-gpu share one module: which of them is loaded depends on the order of "
            "installation. qv-export computes on the CPU with either; uninstall both and install one."
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
