"""A gate on the weights themselves: a matrix of one value alone computes nothing, as zeros of a broken download do."""

import math
from pathlib import Path

from export.bundle import Bundle
from export.records.manifest import CHUNK_BYTES
from export.weights.safetensors_file import StoredTensor, read_safetensors_header
from validate.gates.gates import GateResult

_FIRST_CHUNK_BYTES = 4096


def judge_weights(bundle: Bundle) -> GateResult:
    """Every matrix of a bundle holds at least two values.

    Vectors may be constant: norms begin as ones and biases as zeros.
    """
    constant = [
        name
        for record in bundle.manifest.weights
        for name in constant_matrices(bundle.directory / record.name)
    ]
    shown = ", ".join(constant[:3]) + (f" and {len(constant) - 3} more" if len(constant) > 3 else "")
    return GateResult(
        "weights_vary",
        "weights",
        passed=not constant,
        value=float(len(constant)),
        limit=0.0,
        detail=f"one value alone in {shown}" if constant else "no matrix is one value alone",
    )


def constant_matrices(path: Path) -> list[str]:
    """Names of a file's tensors of two or more dimensions whose elements are all the same, byte for byte."""
    return [
        tensor.name
        for tensor in read_safetensors_header(path)
        if len(tensor.shape) >= 2 and tensor.length_bytes and _is_constant(tensor)
    ]


def _is_constant(tensor: StoredTensor) -> bool:
    """Reads a few KB of a tensor that varies, and all of one that does not."""
    size = tensor.length_bytes // math.prod(tensor.shape)
    chunk_bytes = _FIRST_CHUNK_BYTES
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset_bytes)
        first = file.read(size)
        left = tensor.length_bytes - size
        while left:
            chunk = file.read(min(left, chunk_bytes))
            if not chunk or chunk != first * (len(chunk) // size):
                return False
            left -= len(chunk)
            chunk_bytes = CHUNK_BYTES
    return True
