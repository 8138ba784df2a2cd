"""Which products of a built engine read codes, by what the engine's inspector says of its layers."""

import re
from collections.abc import Iterator, Sequence

import onnx

from export.errors import UserError

_LOW_BIT = {"Int4", "Int8", "FP8", "FP4"}
_FLOATS = {"Float", "Half", "BFloat16"}
_NODES = re.compile(r"\[ONNX Layer: ([^\]|]*?)(?: \| [^\]]*)?\]")
_TENSOR = re.compile(r"Dimensions: \[([^\]]*)\].*?Datatype: (\w+)")
_SECTION = {
    name: re.compile(rf"{name}: \[(.*?)\](?=, (?:Constants|Outputs|TacticName|StreamId|Metadata): ?)")
    for name in ("Constants", "Outputs")
}

MIN_SM_OF_FP8 = 89
MIN_SM_OF_BFLOAT16 = 80


def products_by_codes(layers: str) -> set[str]:
    """Names of the ONNX nodes that are computed from codes in every profile.

    A layer that has codes for a constant and gives a tensor of their very size in floats expands them for another one.

    Args:
        layers: the inspector's text, one layer a line.
    """
    by_codes: set[str] = set()
    expanded: set[str] = set()
    for line in layers.splitlines():
        codes = [sorted(dims) for dims, dtype in _tensors(line, "Constants") if dtype in _LOW_BIT]
        codes = [dims for dims in codes if len(dims) > 1]
        if codes:
            floats = [sorted(dims) for dims, dtype in _tensors(line, "Outputs") if dtype in _FLOATS]
            nodes = set(_NODES.findall(line))
            if any(dims in floats for dims in codes):
                expanded |= nodes
            else:
                by_codes |= nodes
    return by_codes - expanded


def _tensors(line: str, section: str) -> Iterator[tuple[Sequence[int], str]]:
    found = _SECTION[section].search(line)
    for dims, dtype in _TENSOR.findall(found[1] if found else ""):
        yield [int(dim) for dim in dims.split(",") if dim], dtype


def require_architectures(model: onnx.ModelProto, sm: Sequence[int]) -> None:
    """Raises:
    UserError: the graph holds values that an architecture has no instructions for: 8-bit floats, or bfloat16.
    """
    types = {weight.data_type for weight in model.graph.initializer}
    before = [one for one in sm if one < MIN_SM_OF_BFLOAT16]
    if onnx.TensorProto.BFLOAT16 in types and before:
        raise UserError(
            f"SM{before[0]} has no bfloat16, in which this checkpoint's weights are stored; graphs of every dtype read "
            "them as they are. Leave that architecture out (bfloat16 needs SM80 or later), or export a checkpoint "
            "whose weights are stored in float16."
        )
    has_fp8 = onnx.TensorProto.FLOAT8E4M3FN in types
    old = [one for one in sm if one < MIN_SM_OF_FP8]
    if has_fp8 and old:
        raise UserError(
            f"This bundle multiplies 8-bit floats, which SM{old[0]} has no instructions for: export it with "
            "--quantize int8, which every architecture has, or leave that one out (fp8 needs SM89 or later)."
        )
