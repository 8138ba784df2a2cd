"""TensorRT and TensorRT-RTX: their Python modules, their versions, and the GPUs they build for.

Their Python API is one for networks, parser, configuration and contexts, so the rest of this folder takes the module as
an argument. They never share a process: RTX aborts when a plugin is registered, and the first logger stays for both.
"""

import importlib
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Literal, cast, get_args

from packaging.version import Version

from engines.backends.tensorrt.api import Bindings
from engines.packages import first_installed_version, has_module
from export.errors import UserError
from export.install import install_command, package_command
from export.records.engine_record import EngineRecord

TensorRtTarget = Literal["tensorrt", "tensorrt-rtx"]
TENSORRT_TARGETS: tuple[TensorRtTarget, ...] = get_args(TensorRtTarget)

RTX_ARCHITECTURES = (75, 80, 86, 89, 120, 121)
"""`ComputeCapability` of TensorRT-RTX 1.7; a test compares it with the module."""

TENSORRT_LEAST_ARCHITECTURE = 80
"""Of what qv-export offers: bfloat16 needs it, and so do the plugins' kernels."""

MODULES: dict[TensorRtTarget, tuple[str, ...]] = {
    # NVIDIA's metapackage names the module tensorrt_rtx, the wheels on PyPI tensorrt_rtx_bindings.
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    "tensorrt": ("tensorrt",),
}
MIN_TENSORRT_VERSION = "11.1"
"""The first with the native attention that our graphs use."""

MIN_DRIVER_BRANCH = 580
"""Oldest branch of NVIDIA's driver: CUDA 13's (CUDA Toolkit release notes, table of driver versions)."""


def remedy(target: TensorRtTarget) -> str:
    """The line that installs a target, for the installation at hand."""
    if target == "tensorrt-rtx":
        return install_command("rtx")
    return f"{package_command('tensorrt-cu13>=11.1')} (its libraries come from NVIDIA's own index)"


def installed_library(target: TensorRtTarget, distributions: Sequence[str]) -> str | None:
    """Version of the target's library, or None where it cannot be imported or is too old to be used."""
    if not any(map(has_module, MODULES[target])):
        return None
    found = first_installed_version(distributions)
    if found and target == "tensorrt" and Version(found) < Version(MIN_TENSORRT_VERSION):
        return None
    return found


def require_installed(target: TensorRtTarget) -> str:
    """The name of the target's module.

    Raises:
        UserError: it is not installed.
    """
    name = next((name for name in MODULES[target] if find_spec(name)), None)
    if name is None:
        raise UserError(
            f"Target {target} needs the Python module {MODULES[target][-1]}, which is not installed.",
            f"Install it: {remedy(target)}",
        )
    return name


def load_bindings(target: TensorRtTarget) -> Bindings:
    """Import the target's Python module.

    Raises:
        UserError: it is not installed, or its libraries do not load.
    """
    name = require_installed(target)
    try:
        return cast(Bindings, importlib.import_module(name))
    except (ImportError, OSError) as error:
        raise UserError(
            f"Target {target}: the module {name} is installed, but does not load: {error}.",
            f"Install it anew: {remedy(target)}",
        ) from error


def architecture_problems(target: TensorRtTarget, sm: tuple[int, ...]) -> list[str]:
    """What is wrong with a list of architectures, as sentences; empty if nothing is."""
    known = ", ".join(map(str, RTX_ARCHITECTURES))
    if len(set(sm)) < len(sm):
        return [f"each architecture once, found {', '.join(map(str, sm))}"]
    if target == "tensorrt":
        if len(sm) > 1:
            return [f"TensorRT builds for one architecture, found {', '.join(map(str, sm))}"]
        return [
            f"SM{one}: TensorRT engines of qv-export need SM{TENSORRT_LEAST_ARCHITECTURE} or newer"
            for one in sm
            if one < TENSORRT_LEAST_ARCHITECTURE
        ]
    if not sm:
        return [f"TensorRT-RTX needs the architectures to build for: --sm with one or more of {known}"]
    return [
        f"SM{one}: TensorRT-RTX builds for {known}. For SM90, SM100 and SM103 use --target tensorrt on such a GPU"
        for one in sm
        if one not in RTX_ARCHITECTURES
    ]


def serves_architecture(record: EngineRecord, sm: int) -> bool:
    """True if an engine has code for an architecture (compute capability x 10)."""
    # "same_compute_capability" is more lenient within one architecture only, which the number alone stands for.
    is_ampere_plus = record.inputs.get("option hardware_compatibility") == "ampere_plus"
    return sm in record.sms or (is_ampere_plus and sm >= TENSORRT_LEAST_ARCHITECTURE)


def is_rtx(trt: Bindings) -> bool:
    """True for TensorRT-RTX's module, under either of its names."""
    return trt.__name__ in MODULES["tensorrt-rtx"]


def library_versions(trt: Bindings) -> dict[str, str]:
    """Versions of what shapes an engine's bytes beside the graph."""
    return {trt.__name__: trt.__version__, "qv-export": version("qv-export")}
