"""ONNX bodies of `QvAllReduce` and `QvAllGather`, one for each target.

No standard op speaks to another process. Outside of TensorRT the bodies call `QvCollective`, a custom op that whoever
opens the graph registers: a runtime without it refuses the graph instead of computing with a part of the sums.
"""

from collections.abc import Sequence

import onnx

from plugins.onnx.function_body import function_from_body
from plugins.registry import ALL_GATHER, ALL_REDUCE, OpSignature

CUSTOM_DOMAIN = "ai.onnx.contrib"
"""Of the custom ops that onnxruntime-extensions runs in Python."""

CUSTOM_OP = "QvCollective"

_OPERATIONS = ((ALL_REDUCE, "all_reduce", "sum"), (ALL_GATHER, "all_gather", "none"))


def portable() -> Sequence[onnx.FunctionProto]:
    """As a file holds them: for no communicator yet."""
    return onnxruntime(communicator=0)


def onnxruntime(communicator: int) -> Sequence[onnx.FunctionProto]:
    """Float32 whatever x is: the custom op has no half types, and a sum of many ranks wants the bits.

    Args:
        communicator: number under which the process keeps it; several ranks may live in one process.
    """
    return [
        function_from_body(
            signature,
            f"""
    x_float = Cast<to = 1>(x)
    y_float = {CUSTOM_DOMAIN}.{CUSTOM_OP}<operation = "{operation}", communicator = {communicator}>(x_float)
    {signature.outputs[0]} = CastLike(y_float, x)
""",
            {CUSTOM_DOMAIN: 1},
        )
        for signature, operation, _ in _OPERATIONS
    ]


def tensorrt_rtx(num_ranks: int) -> Sequence[onnx.FunctionProto]:
    """TensorRT's own layer, which its parser makes of any node of that name; over the whole group, never a part of it.

    Groups are ignored by TensorRT 11.2 (NVIDIA/TensorRT, pytorch/TensorRT#4380): everyone would be summed.
    """
    return [_native(*row, num_ranks) for row in _OPERATIONS]


def _native(signature: OpSignature, operation: str, reduce_op: str, num_ranks: int) -> onnx.FunctionProto:
    attributes = (
        f'collective_operation = "{operation}", reduce_op = "{reduce_op}", root = -1, nb_rank = {num_ranks}'
    )
    return function_from_body(
        signature, f"{signature.outputs[0]} = qv.DistCollective<{attributes}>(x)", {"qv": 1}
    )
