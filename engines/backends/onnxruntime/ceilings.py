"""What ONNX Runtime's own kernels reach on this machine: a large product, and a pass over memory."""

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from engines.backends.ceilings import COPY_BYTES, Ceiling, ceiling

_SIDE = 1024
_OPSET = 17


def measure_ceilings(num_threads: int | None) -> tuple[Ceiling, ...]:
    """Both limits, with the threads that an engine would have.

    A product of square float32 matrices, and the negation of values that no cache holds: one read and one write each.

    Args:
        num_threads: None takes every core.
    """
    matrix = np.full((_SIDE, _SIDE), 0.5, np.float32)
    values = np.full(COPY_BYTES // 4, 0.5, np.float32)
    multiply = _bound("MatMul", {"a": matrix, "b": matrix}, matrix.copy(), num_threads)
    negate = _bound("Neg", {"a": values}, np.empty_like(values), num_threads)
    return (
        ceiling("copy", 2 * values.nbytes, negate, f"ONNX Runtime's Neg of {COPY_BYTES >> 20} MiB, float32"),
        ceiling("matmul", 2 * _SIDE**3, multiply, f"ONNX Runtime's MatMul of {_SIDE} x {_SIDE}, float32"),
    )


def _bound(
    op_type: str, inputs: dict[str, np.ndarray], output: np.ndarray, num_threads: int | None
) -> Callable[[], None]:
    """A graph of one node whose inputs and output are in place."""
    graph = helper.make_graph(
        [helper.make_node(op_type, list(inputs), ["y"])],
        op_type,
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
            for name, value in inputs.items()
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output.shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
    options = ort.SessionOptions()
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_cpu_input(name, value)
    binding.bind_output("y", "cpu", 0, np.float32, output.shape, output.ctypes.data)

    def call() -> None:
        session.run_with_iobinding(binding)

    call.keeps = (inputs, output)  # type: ignore[attr-defined]  # bound by address alone
    return call
