"""Whether a graph takes and gives what the contract says of it, asked before a library opens or compiles it.

A bundle's graph may be sound and still another one: the other role's, or one of another size than `config.json` says.
A library would fail in the middle of a call, with words of its own.
"""

from collections.abc import Sequence
from pathlib import Path

import onnx

from export.contract import GraphContract, TensorSpec
from export.errors import UserError

_MAX_LISTED = 6


def require_interface(model: onnx.ModelProto, contract: GraphContract, path: Path) -> None:
    """Compare a graph's inputs and outputs with the contract; more outputs than it names may be there.

    Raises:
        UserError: inputs or outputs are missing, unknown or of another fixed size; the first few.
    """
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    known = {spec.name for spec in contract.inputs}
    problems = [f"unknown input {value.name!r}" for value in inputs if value.name not in known]
    problems += _differences("input", inputs, contract.inputs)
    problems += _differences("output", model.graph.output, contract.outputs)
    if problems:
        more = len(problems) - _MAX_LISTED
        listed = "; ".join(problems[:_MAX_LISTED]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(
            f"{path} is not the graph that its name and config.json say: {listed}.",
            "Export the checkpoint again.",
        )


def _differences(kind: str, values: Sequence[onnx.ValueInfoProto], specs: Sequence[TensorSpec]) -> list[str]:
    found = {value.name: value.type.tensor_type.shape.dim for value in values}
    problems = [f"no {kind} {spec.name!r}" for spec in specs if spec.name not in found]
    for spec in specs:
        dims = found.get(spec.name, ())
        fixed = [(dim.dim_value, wanted) for dim, wanted in zip(dims, spec.shape, strict=False)]
        is_other = any(isinstance(wanted, int) and size and size != wanted for size, wanted in fixed)
        if dims and (len(dims) != len(spec.shape) or is_other):
            sizes = [dim.dim_value or dim.dim_param or "?" for dim in dims]
            problems.append(f"{kind} {spec.name!r} is {sizes!s:.100}, not {list(spec.shape)}")
    return problems
