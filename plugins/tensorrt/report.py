"""What this machine can do with our ops: the data behind `qv-export doctor --plugins`.

Nothing here needs a GPU, TensorRT or Triton: what is missing is a finding, not an error.
"""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from plugins.child_python import program_command

PACKAGES = ("triton", "tensorrt", "tensorrt-rtx-cu13-bindings", "onnxruntime")
DEFAULT_DRIVER_CUDA = "13.0"
"""Without a GPU at hand: what TensorRT 11 asks for at least."""

_EMBEDDED = re.compile(
    rb"\.version (?P<isa>\d+\.\d+)\s+\.target (?P<target>sm_\w+)(?:(?!\.version).){0,4000}?"
    rb"\.visible \.entry (?P<kernel>qv_\w+)\(",
    re.DOTALL,
)


@dataclass(frozen=True)
class KernelReport:
    """One plugin's kernel as it goes into an engine for one architecture: sizes of Qwen2-VL, bfloat16, first tactic."""

    plugin: str
    architecture: str
    ptx_target: str
    ptx_isa: str
    registers: int
    spill_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class EmbeddedKernel:
    """A kernel of ours found in an engine's bytes."""

    kernel: str
    ptx_target: str
    ptx_isa: str


@dataclass(frozen=True)
class PluginsReport:
    packages: Mapping[str, str | None]
    """Versions; None where not installed."""
    gpu: str | None
    """As "sm_90, driver for CUDA 13.0"."""
    registration: str
    """Whether TensorRT takes the plugins here, in words."""
    kernels: tuple[KernelReport, ...] = ()
    engine_kernels: tuple[EmbeddedKernel, ...] | None = None
    """None: no engine was asked about. Empty: it holds no kernel of ours, so it runs the ops' bodies."""
    problems: tuple[str, ...] = field(default=())


def report(engine: Path | None = None) -> PluginsReport:
    """Look at this machine, and at an engine's file if one is given. Takes some seconds: it compiles the kernels.

    Raises:
        FileNotFoundError: there is no such engine.
    """
    problems: list[str] = []
    gpu, capability, driver_cuda = None, 80, DEFAULT_DRIVER_CUDA
    kernels: tuple[KernelReport, ...] = ()
    if find_spec("triton") is None:
        problems.append("no PTX can be made: the package triton is not installed")
    else:
        try:
            gpu, capability, driver_cuda = _gpu()
        except RuntimeError as error:
            problems.append(str(error))
        kernels = tuple(_kernels(driver_cuda))
    return PluginsReport(
        packages={name: _version(name) for name in PACKAGES},
        gpu=gpu,
        registration=_registration(capability, driver_cuda),
        kernels=kernels,
        engine_kernels=None if engine is None else embedded_kernels(engine.read_bytes()),
        problems=tuple(problems),
    )


def embedded_kernels(engine: bytes) -> tuple[EmbeddedKernel, ...]:
    """Our kernels' PTX in an engine, found as the text that it is; TensorRT would need a GPU to say."""
    return tuple(
        EmbeddedKernel(*(match[name].decode() for name in ("kernel", "target", "isa")))
        for match in _EMBEDDED.finditer(engine)
    )


def _gpu() -> tuple[str, int, str]:
    from plugins.tensorrt.cuda_driver import compute_capability, driver_cuda_version  # noqa: PLC0415  (imports Triton)

    capability, cuda = compute_capability(), driver_cuda_version()
    return f"sm_{capability}, driver for CUDA {cuda}", capability, cuda


def _kernels(driver_cuda: str) -> list[KernelReport]:
    from plugins.cached_attention import kernel as cached_kernel  # noqa: PLC0415
    from plugins.cached_attention import tensorrt_plugin as cached  # noqa: PLC0415
    from plugins.patch_attention import kernel as attention_kernel  # noqa: PLC0415
    from plugins.patch_attention import tensorrt_plugin as attention  # noqa: PLC0415
    from plugins.rotary import kernel as rotary_kernel  # noqa: PLC0415
    from plugins.rotary import tensorrt_plugin as rotary  # noqa: PLC0415
    from plugins.tensorrt import ptx  # noqa: PLC0415  (imports Triton, and the kernels PyTorch)

    reports = []
    for sm in ptx.ARCHITECTURES:
        tile = attention_kernel.tiles(80, 2)[0]
        cached_tile = cached_kernel.tiles(2)[0]
        for plugin, kernel in (
            (
                rotary.PLUGIN_ID,
                rotary.compile_kernel("bf16", 28, 4, 128, rotary_kernel.TILES[0], sm, driver_cuda),
            ),
            (attention.PLUGIN_ID, attention.compile_kernel("bf16", 16, 80, tile, sm, driver_cuda)),
            (cached.PLUGIN_ID, cached.compile_kernel("bf16", 28, 4, 128, cached_tile, sm, driver_cuda)),
            (cached.COMBINE_PLUGIN_ID, cached.compile_combine("bf16", 28, 128, sm, driver_cuda)),
        ):
            resources = ptx.assemble(kernel, sm)
            isa, target = ptx.isa_and_target(kernel.ptx)
            reports.append(
                KernelReport(
                    plugin=plugin,
                    architecture=f"sm_{sm}",
                    ptx_target=target,
                    ptx_isa=f"{isa // 10}.{isa % 10}",
                    registers=resources.registers,
                    spill_bytes=resources.spill_bytes,
                    shared_bytes=resources.shared_bytes,
                )
            )
    return reports


def _registration(capability: int, driver_cuda: str) -> str:
    """Register in a process of its own: TensorRT-RTX must be able to run in this one afterwards."""
    if find_spec("tensorrt") is None:
        return "TensorRT is not installed: graphs run the ops' bodies, and engines cannot be built with plugins here"
    program = f"from plugins.tensorrt.register import *; register_plugins({capability}, {driver_cuda!r})"
    result = subprocess.run(program_command(program), capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        return f"TensorRT is installed, but the plugins do not register: {reason}"
    return f"our plugins register with TensorRT for sm_{capability}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
