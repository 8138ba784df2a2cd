"""Whether an engine can be loaded here: asked of its record, before a byte of it is deserialized.

TensorRT refuses a foreign engine with a line in its log, or crashes; here every difference is told at once, with the
command that builds the engine that is wanted.
"""

import shlex
from collections.abc import Iterator
from pathlib import Path

from engines.backends import BACKENDS, backend_of, default_backend
from engines.gpus import gpu_facts
from engines.machine import Machine
from engines.sizing.choose_limits import options_text
from export.errors import UserError
from export.records.engine_record import EngineRecord


def this_machine() -> Machine:
    """Look around; imports no library of a backend."""
    return Machine({name: backend.version() for name, backend in BACKENDS.items()}, gpu_facts())


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
    found = load_problems(record, bundle_key, machine, known_plugins)
    if found:
        raise UserError(
            f"The engine {record.key} in {bundle} cannot be loaded here:\n- "
            + "\n- ".join(found)
            + f"\n{_way_out(record, bundle, machine)}"
        )


def load_problems(
    record: EngineRecord, bundle_key: str, machine: Machine, known_plugins: frozenset[str]
) -> list[str]:
    """What keeps an engine from being loaded, as sentences; see `require_loadable`."""
    return [
        *backend_of(record.target).load_problems(record, machine),
        *_content_differences(record, bundle_key, known_plugins),
    ]


def _content_differences(
    record: EngineRecord, bundle_key: str, known_plugins: frozenset[str]
) -> Iterator[str]:
    if record.inputs.get("bundle") != bundle_key:
        yield f"it was built from bundle {record.inputs.get('bundle')}, the bundle's key is {bundle_key}"
    unknown = sorted(set(record.plugins) - known_plugins)
    if unknown:
        known = ", ".join(sorted(known_plugins))
        yield f"it holds plugins {', '.join(unknown)}, this qv-export knows {known}: use the qv-export that built it"


def _way_out(record: EngineRecord, bundle: Path, machine: Machine) -> str:
    """What helps: another machine where this one has no GPU at all, else an engine for this one."""
    if backend_of(record.target).device == "gpu" and not machine.gpus:
        gpus = " or ".join(f"SM{sm}" for sm in record.sms) or "the kind it was built for"
        without = default_backend().name
        return f"Use it on a machine with an NVIDIA GPU of {gpus}; without one, {without} runs the bundle."
    return f"Build one that can, on this machine: {rebuild_command(record, bundle, machine)}"


def rebuild_command(record: EngineRecord, bundle: Path, machine: Machine) -> str:
    """The command line that builds an engine like this one for this machine."""
    arguments = backend_of(record.target).rebuild_arguments(record, machine)
    command = f"qv-export build {shlex.quote(str(bundle))} --target {record.target}"
    return " ".join([command, *arguments, options_text(record.limits)])
