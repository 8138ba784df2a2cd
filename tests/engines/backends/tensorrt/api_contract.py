"""Holds `engines.backends.tensorrt.api` to NVIDIA's module. Runs in a process of its own, prints JSON.

    python -m tests.engines.backends.tensorrt.api_contract tensorrt_rtx_bindings
    LD_LIBRARY_PATH=STUBS python -m tests.engines.backends.tensorrt.api_contract tensorrt_bindings

Names are looked up in the module. Arguments are compared with the signatures that pybind11 writes into docstrings.
"""

import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, get_args

from engines.backends.tensorrt import api
from engines.backends.tensorrt.library import RTX_ARCHITECTURES
from engines.backends.tensorrt.options import HardwareCompatibility

_SIGNATURE = re.compile(r"^(?:\d+\. )?(?P<name>\w+)\((?P<arguments>.*)\) -> ")
_ARGUMENT = re.compile(r"(?:^|, )(\w+): ")


def problems(module: Any, protocols: Mapping[type, str]) -> Iterator[str]:
    """What the module lacks, one sentence each."""
    for protocol, path in protocols.items():
        owner = module
        for name in filter(None, path.split(".")):
            owner = getattr(owner, name, None)
        if owner is None:
            yield f"{path} does not exist"
            continue
        for name, member in members(protocol).items():
            where = f"{path}.{name}".lstrip(".")
            if not hasattr(owner, name):
                yield f"{where} does not exist"
            elif inspect.isfunction(member):
                original = getattr(owner, name)
                # A class of the module is called like a function: its constructor has the signature.
                called = original.__init__ if inspect.isclass(original) else original
                yield from argument_problems(where, member, called.__doc__ or "")


def members(protocol: type) -> dict[str, Any]:
    """Methods, properties and attributes that a Protocol declares, its bases' too."""
    found: dict[str, Any] = {}
    for base in reversed(protocol.__mro__):
        if base not in {object, Protocol} and getattr(base, "_is_protocol", False):
            declared = {**dict.fromkeys(inspect.get_annotations(base)), **vars(base)}
            found |= declared
    # Protocols carry machinery of `typing`; of the module's own names only its version and name are dunder.
    return {name: found[name] for name in found if name[0] != "_" or name in {"__name__", "__version__"}}


def argument_problems(where: str, declared: Any, documentation: str) -> Iterator[str]:
    """Compare the names of arguments, in order, with each overload."""
    ours = list(inspect.signature(declared).parameters)[1:]
    overloads = [match for line in documentation.splitlines() if (match := _SIGNATURE.match(line.strip()))]
    theirs = [_ARGUMENT.findall(overload["arguments"])[1:] for overload in overloads]
    if theirs and not any(names[: len(ours)] == ours for names in theirs):
        yield f"{where} takes {theirs}, we pass {ours}"
    if not theirs:
        yield f"{where} documents no signature"


class Planted(Protocol):
    """Wrong on purpose: a misspelt method, a renamed keyword, an argument too many, a member of an old release."""

    int8_calibrator: Any

    def create_netwrok(self) -> Any: ...
    def create_timing_cache(self, cache: bytes) -> Any: ...
    def set_flag(self, flag: Any, value: bool) -> None: ...


def main(module_name: str) -> dict[str, Any]:
    module = importlib.import_module(module_name)
    is_rtx = "rtx" in module_name
    levels = [level.upper() for level in get_args(HardwareCompatibility)]
    return {
        "version": module.__version__,
        "common": list(problems(module, api.COMMON)),
        "rtx_only": list(problems(module, api.RTX_ONLY)),
        "planted": list(problems(module, {Planted: "IBuilderConfig", Builder: "Bulider"})),
        "levels": [level for level in levels if not hasattr(module.HardwareCompatibilityLevel, level)],
        "architectures": sorted(
            int(name[2:]) for name in module.ComputeCapability.__members__ if name.startswith("SM")
        )
        if is_rtx
        else list(RTX_ARCHITECTURES),
    }


Builder = api.Builder

if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(main(sys.argv[1])))
