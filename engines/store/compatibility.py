"""Can this engine be loaded here? Asked of its record, before a byte of it is deserialized.

TensorRT refuses a foreign engine with a line in its log, or crashes; here every difference is told at once, with the
command that builds the engine that is wanted.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from engines.backends.tensorrt.flavour import FLAVOURS
from engines.gpus import GpuFacts, gpu_facts
from engines.sizing.choose_limits import options_text
from engines.targets import TARGETS, TargetName, serves_sm, target_version
from export.engine_record import EngineRecord
from export.errors import UserError


@dataclass(frozen=True)
class Machine:
    """What an engine is loaded on."""

    versions: dict[TargetName, str | None]
    """Version of each target's library; None where it is missing."""
    gpus: tuple[GpuFacts, ...]


def this_machine() -> Machine:
    """Look around; imports no library of a target."""
    return Machine({name: target_version(target) for name, target in TARGETS.items()}, gpu_facts())


def require_loadable(
    record: EngineRecord, bundle: Path, bundle_key: str, machine: Machine, known_plugins: frozenset[str]
) -> None:
    """Compare an engine's record with the bundle and with the machine.

    Args:
        record: the engine's.
        bundle: the bundle's directory, for the command in the message.
        bundle_key: key of the bundle as it is now.
        machine: where it is to be loaded.
        known_plugins: `namespace::Name/version` of the plugins that this qv-export knows.

    Raises:
        UserError: it cannot be loaded here; every difference, and how to build the engine that can.
    """
    found = differences(record, bundle_key, machine, known_plugins)
    if found:
        raise UserError(
            f"The engine {record.key} in {bundle} cannot be loaded here:\n- "
            + "\n- ".join(found)
            + f"\nBuild one that can, on this machine: {rebuild_command(record, bundle, machine)}"
        )


def differences(
    record: EngineRecord, bundle_key: str, machine: Machine, known_plugins: frozenset[str]
) -> list[str]:
    """What keeps an engine from being loaded, as sentences; see `require_loadable`."""
    return [
        *_library_differences(record, machine),
        *_gpu_differences(record, machine),
        *_content_differences(record, bundle_key, known_plugins),
    ]


def _library_differences(record: EngineRecord, machine: Machine) -> Iterator[str]:
    target = TARGETS[record.target]
    built_with = next((record.inputs[name] for name in target.distributions if name in record.inputs), None)
    here = machine.versions[record.target]
    if here is None:
        other = next((name for name in FLAVOURS if name != record.target and machine.versions[name]), None)
        hint = f"; {other} is installed, which is another flavour and reads no such engine" if other else ""
        yield f"it needs {record.target} {built_with}, which is not installed{hint}: {target.install}"
    elif built_with is None or Version(here).release[:3] != Version(built_with).release[:3]:
        yield f"it was built with {record.target} {built_with}, installed is {here}: an engine loads in its own version"


def _gpu_differences(record: EngineRecord, machine: Machine) -> Iterator[str]:
    target = TARGETS[record.target]
    if record.target == "onnxruntime":
        return
    built_for = ", ".join(f"SM{sm}" for sm in record.sms)
    if not machine.gpus:
        yield f"it needs an NVIDIA GPU of {built_for}; `nvidia-smi` lists none"
        return
    gpu = machine.gpus[0]
    if not serves(record, gpu.sm):
        yield f"it was built for {built_for}, this GPU is {gpu.name}, SM{gpu.sm}"
    branch = _branch(gpu.driver)
    if target.min_driver and branch < target.min_driver:
        yield f"it needs driver {target.min_driver} or newer (CUDA 13), this one is {gpu.driver}: update the driver"
    # TensorRT keeps kernels that were compiled for the driver it was built under; TensorRT-RTX builds without one.
    elif record.target == "tensorrt" and record.driver and branch < _branch(record.driver):
        yield f"it was built under driver {record.driver}, this older one is {gpu.driver}: update the driver"


def serves(record: EngineRecord, sm: int) -> bool:
    """True if an engine has code for an architecture."""
    # "same_compute_capability" is more lenient within one architecture only, which the number alone stands for.
    is_ampere_plus = record.inputs.get("option hardware_compatibility") == "ampere_plus"
    return sm in record.sms or (is_ampere_plus and serves_sm("tensorrt", sm))


def _branch(driver: str) -> int:
    major = driver.partition(".")[0]
    return int(major) if major.isdigit() else 0


def _content_differences(
    record: EngineRecord, bundle_key: str, known_plugins: frozenset[str]
) -> Iterator[str]:
    if record.inputs.get("bundle") != bundle_key:
        yield f"it was built from bundle {record.inputs.get('bundle')}, the bundle's key is {bundle_key}"
    unknown = sorted(set(record.plugins) - known_plugins)
    if unknown:
        known = ", ".join(sorted(known_plugins))
        yield f"it holds plugins {', '.join(unknown)}, this qv-export knows {known}: use the qv-export that built it"


def rebuild_command(record: EngineRecord, bundle: Path, machine: Machine) -> str:
    """The command line that builds an engine like this one for this machine."""
    sms = [gpu.sm for gpu in machine.gpus[:1]] or list(record.sms)
    architectures = [f"--sm {sm}" for sm in sms] if record.target == "tensorrt-rtx" else []
    command = f"qv-export build {shlex.quote(str(bundle))} --target {record.target}"
    return " ".join([command, *architectures, options_text(record.limits)])
