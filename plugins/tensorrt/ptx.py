"""PTX of a Triton kernel that another program launches, compiled and checked without a GPU.

`compile_to_ptx` gives text for a TensorRT engine; `assemble` asks NVIDIA's assembler (it comes with Triton) what
that text costs on an architecture. Neither needs a driver.
"""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
"""Compute capabilities x 10 that the PTX is checked for; newer ones run it too."""

MAX_LAUNCH_SHARED_BYTES = 48 * 1024
"""What a launch gets without `cuFuncSetAttribute`. Nothing says that TensorRT sets it for ahead-of-time plugins."""

PORTABLE_TARGETS = (80, 86, 89)
"""Code is generated for the newest of these that the GPU's architecture includes; it runs on all later ones.

From 90 on Triton emits architecture-specific code (`.target sm_90a`: wgmma, tcgen05), which loads on one
architecture only and which TensorRT is reported to reject. `mma.sync` and `cp.async` run everywhere.
"""

NEWEST_ISA = 87
"""PTX ISA x 10 that is enough for the `PORTABLE_TARGETS`, and the newest that Triton 3.7, which torch 2.13 asks for,
assembles. A driver that is newer takes it as well."""

OLDEST_ISA = 80
"""What the kernels need: CUDA 12.0."""

_ENTRY = re.compile(r"\.visible \.entry (?P<name>[\w$]+)\((?P<parameters>[^)]*)\)")
_PARAMETER = re.compile(r"\.param \.(?P<type>\w+)(?P<pointer> \.ptr[ \w.]*)? (?P<name>[\w$]+)")
_RESOURCES = re.compile(r"Used (?P<registers>\d+) registers")
_SPILLS = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
)


@dataclass(frozen=True)
class CompiledKernel:
    """PTX and what its launch needs."""

    name: str
    ptx: str
    num_warps: int
    shared_bytes: int
    """Dynamic shared memory."""

    @property
    def threads_per_block(self) -> int:
        return 32 * self.num_warps


@dataclass(frozen=True)
class Resources:
    """What one thread (registers, spills) and one block (shared memory) take on an architecture."""

    registers: int
    spill_bytes: int
    shared_bytes: int


def isa_for_driver(cuda_version: str) -> int:
    """Newest PTX ISA (x 10) that a driver of this CUDA version loads, e.g. "12.4" -> 84, "13.0" -> 90.

    PTX ISA release notes: 8.0 to 8.5 came with CUDA 12.0 to 12.5, and 12.6 kept 8.5; 13.m brings 9.m.

    Raises:
        ValueError: not a version, or older than CUDA 12.0.
    """
    match = re.fullmatch(r"(\d+)\.(\d+)", cuda_version)
    if not match or int(match[1]) < 12:
        raise ValueError(
            f"driver's CUDA version: expected 12.0 or newer, such as '13.0', not {cuda_version!r}"
        )
    major, minor = int(match[1]), int(match[2])
    if major == 12:
        return 80 + minor - (minor >= 6)
    return 10 * (major - 4) + minor


def compile_to_ptx(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, int | str],
    *,
    num_warps: int,
    num_stages: int,
    compute_capability: int,
    driver_cuda: str,
) -> CompiledKernel:
    """Compile a `triton.jit` kernel on any machine.

    Args:
        kernel: the function; its parameters are those of `types`, in order, then `constants`.
        types: Triton's names, "*bf16", "*i32", "i32". Pointers are taken to be aligned to 16 bytes, which
            TensorRT promises for every binding (256 bytes) and PyTorch for every new tensor.
        constants: compile-time arguments.
        num_warps, num_stages: Triton's launch options.
        compute_capability: x 10, 80 or newer.
        driver_cuda: the oldest CUDA version whose driver must load the PTX, as "13.0".

    Raises:
        ValueError: too old an architecture or driver.
        RuntimeError: the kernel needs more than a launch can give; names what.
    """
    if compute_capability < PORTABLE_TARGETS[0]:
        raise ValueError(
            f"no PTX for sm_{compute_capability}: the kernels need sm_{PORTABLE_TARGETS[0]} or newer"
        )
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature={**types, **dict.fromkeys(constants, "constexpr")},
        constexprs=dict(constants),
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, type_ in enumerate(types.values())
            if type_[0] == "*"
        },
    )
    newest = max(target for target in PORTABLE_TARGETS if target <= compute_capability)
    target = GPUTarget("cuda", newest, 32)
    options = {
        "num_warps": num_warps,
        "num_stages": num_stages,
        "ptx_version": min(isa_for_driver(driver_cuda), NEWEST_ISA),
        "enable_fp_fusion": True,
    }
    with knobs.compilation.scope():
        knobs.compilation.disable_line_info = True  # it names files of this machine
        compiled = triton.compile(source, target=target, options=options)
    metadata = compiled.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise RuntimeError(f"{metadata.name} needs scratch memory, which a plugin's launch cannot give")
    if metadata.shared > MAX_LAUNCH_SHARED_BYTES:
        raise RuntimeError(f"{metadata.name} needs {metadata.shared} B of shared memory: take a smaller tile")
    ptx = strip_parameters(compiled.asm["ptx"], keep=len(types))
    return CompiledKernel(metadata.name, ptx, metadata.num_warps, metadata.shared)


def strip_parameters(ptx: str, keep: int) -> str:
    """Remove the parameters after the first `keep`: Triton appends two pointers to scratch memory.

    Raises:
        RuntimeError: one of them is read, so the kernel is not what the caller believes.
    """
    entry = _ENTRY.search(ptx)
    assert entry
    parameters = entry["parameters"].split(",")
    for parameter in parameters[keep:]:
        match = _PARAMETER.search(parameter)
        assert match, parameter
        if len(re.findall(rf"\b{match['name']}\b", ptx)) > 1:
            raise RuntimeError(f"{entry['name']} reads its hidden parameter {match['name']}")
    start, end = entry.span("parameters")
    return ptx[:start] + ",".join(parameters[:keep]) + "\n" + ptx[end:]


def parameter_types(ptx: str) -> list[str]:
    """What the entry takes, read from the text: "pointer", or a scalar's PTX type such as "u32"."""
    entry = _ENTRY.search(ptx)
    assert entry
    return [
        "pointer" if match["pointer"] else match["type"] for match in _PARAMETER.finditer(entry["parameters"])
    ]


def isa_and_target(ptx: str) -> tuple[int, str]:
    """The text's own header, e.g. (87, "sm_80")."""
    version = re.search(r"^\.version (\d+)\.(\d+)$", ptx, re.MULTILINE)
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert version
    assert target
    return int(version[1]) * 10 + int(version[2]), target[1]


@cache
def assemble(kernel: CompiledKernel, compute_capability: int) -> Resources:
    """Assemble for an architecture, as its driver will, and report what the code takes there.

    Raises:
        RuntimeError: the assembler refuses the text; its words are quoted.
    """
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "kernel.ptx"
        source.write_text(kernel.ptx, encoding="ascii")
        command = [assembler_path(), "-v", f"--gpu-name=sm_{compute_capability}", str(source)]
        result = subprocess.run(
            [*command, "-o", str(Path(directory) / "kernel.cubin")],
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode:
        raise RuntimeError(f"ptxas refuses {kernel.name} for sm_{compute_capability}: {result.stderr}")
    registers, spills = _RESOURCES.search(result.stderr), _SPILLS.search(result.stderr)
    assert registers, result.stderr
    assert spills, result.stderr
    spill_bytes = sum(int(spills[name]) for name in ("stack", "stores", "loads"))
    return Resources(int(registers["registers"]), spill_bytes, kernel.shared_bytes)


def assembler_path() -> str:
    """NVIDIA's `ptxas` in Triton's wheel: the newer of its two, which knows every architecture here."""
    return str(knobs.nvidia.ptxas_blackwell.path)
