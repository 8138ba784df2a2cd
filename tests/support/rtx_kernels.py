"""What a TensorRT-RTX engine computes its attention with, asked of the engine file itself.

    python -m tests.support.rtx_kernels ENGINE...

TensorRT-RTX keeps the CUDA source of every kernel that it generated as text in the engine, and compiles it where the
engine is opened. So a CPU can read which kernels there are and what type they add in, although it can run none.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

_KERNEL = re.compile(rb'extern "C" __global__ (?:void )?(?:__launch_bounds__\(\d+\) )?(?:void )?(\w+)\(')
_NAME = re.compile(r"_0x[0-9a-f]+")
_TILED = re.compile(r"\binitialize\(\w+, \w+, DATA_TYPE_(\w+),")
"""The third type that the tiled attention kernel is set up with is that of its sums."""
_SUMS = re.compile(r"(?:\b|_)reduce(?:_ds)?<(?:AddOp<|MaxOp<)?__myln_(\w+)")
_SOFTMAX = re.compile(r"__myln_exp_|Exp\w*Sum|Maxr")
"""In a kernel's source, or in its name, which lists its steps."""
_TYPES = {
    "FP32": "float32",
    "float": "float32",
    "FP16": "float16",
    "half": "float16",
    "BF16": "bfloat16",
    "bf16": "bfloat16",
}


@dataclass(frozen=True)
class AttentionKernel:
    """One generated kernel that weighs values by scores, or normalizes scores."""

    name: str
    sum_dtypes: frozenset[str]
    """Of every sum and maximum in it."""


def attention_kernels(engine: Path) -> list[AttentionKernel]:
    """The kernels of an engine that add scores, in the order in which they stand there."""
    content = engine.read_bytes()
    kernels = []
    for found in _KERNEL.finditer(content):
        name = _NAME.sub("", found[1].decode())
        source = content[found.start() : content.find(b"\n}\n", found.start())].decode(errors="replace")
        if "mha" not in name and not _SOFTMAX.search(name + source):
            continue
        types = [*_TILED.findall(source), *_SUMS.findall(source)]
        if types:
            kernels.append(AttentionKernel(name, frozenset(_TYPES.get(one, one) for one in types)))
    return kernels


def _main() -> None:
    for path in sys.argv[1:]:
        for kernel in attention_kernels(Path(path)):
            sys.stdout.write(f"{path}: {kernel.name} adds in {', '.join(sorted(kernel.sum_dtypes))}\n")


if __name__ == "__main__":
    _main()
