"""Runs one of our ops as ONNX, with a body of the test's choice."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from plugins.onnx.function_body import MICROSOFT_DOMAIN
from plugins.registry import OP_DOMAIN, OPSET_VERSION, OpSignature

Array = npt.NDArray[Any]


def op_model(signature: OpSignature, body: onnx.FunctionProto, inputs: Sequence[Array]) -> onnx.ModelProto:
    """A graph of one call of the op; every dim is dynamic, every float input and output is float32."""
    node = helper.make_node(signature.name, signature.inputs, signature.outputs, domain=OP_DOMAIN)
    node.attribute.extend(helper.make_attribute(*item) for item in signature.attributes.items())
    graph_inputs = [
        helper.make_tensor_value_info(
            name,
            helper.np_dtype_to_tensor_dtype(array.dtype),
            [f"{name}_{axis}" for axis in range(array.ndim)],
        )
        for name, array in zip(signature.inputs, inputs, strict=True)
    ]
    rank = inputs[0].ndim  # of every output, in all three ops
    graph_outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}_{axis}" for axis in range(rank)])
        for name in signature.outputs
    ]
    opsets = {"": OPSET_VERSION, OP_DOMAIN: 1, **{item.domain: item.version for item in body.opset_import}}
    return helper.make_model(
        helper.make_graph([node], signature.name, graph_inputs, graph_outputs),
        functions=[body],
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        ir_version=11,
    )


def run_with_onnxruntime(
    signature: OpSignature, body: onnx.FunctionProto, inputs: Sequence[Array]
) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # TensorScatter warns when past and present are not one buffer, as here
    model = op_model(signature, body, inputs)
    session = ort.InferenceSession(model.SerializeToString(), options)
    return list(session.run(None, dict(zip(signature.inputs, inputs, strict=True))))


def run_with_onnx_reference(
    signature: OpSignature, body: onnx.FunctionProto, inputs: Sequence[Array]
) -> list[Array]:
    """Run by ONNX's own reference evaluator, after its checker has passed the model."""
    model = op_model(signature, body, inputs)
    onnx.checker.check_model(model, full_check=True)
    return list(ReferenceEvaluator(model).run(None, dict(zip(signature.inputs, inputs, strict=True))))


def uses_standard_ops_only(body: onnx.FunctionProto) -> bool:
    return all(item.domain != MICROSOFT_DOMAIN for item in body.opset_import)


def normal(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    return rng.standard_normal(shape).astype(np.float32)
