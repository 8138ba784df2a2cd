"""Every form of a quantized linear layer, and graphs of products with one."""

from typing import Any

import numpy as np
import onnx_ir as ir

from export.quantization.linear import FP8, Precision, QuantizedLinear
from export.quantization.patterns import product
from export.quantization.side_file import stored_linears, write_quantized
from export.weights.quantized import linear_values
from export.weights.safetensors_file import read_safetensors_header

NAME = "model.layers.0.mlp.up_proj.weight"
N, K, BLOCK = 64, 128, 32


def random_linear(precision: Precision, *, is_asymmetric=False, is_reordered=False, activations=None):
    rng = np.random.default_rng(5)
    groups = K // BLOCK if precision == "int4" else 1
    low, high = {"int4": (-8, 8), "int8": (-128, 128), "fp8": (-200, 200)}[precision]
    return QuantizedLinear(
        precision,
        rng.integers(low, high, (N, K)).astype(FP8 if precision == "fp8" else np.int8),
        rng.uniform(0.01, 0.02, (N, groups)).astype(np.float32),
        zeros=rng.integers(-8, 8, (N, groups)).astype(np.int16) if is_asymmetric else None,
        order=rng.permutation(K).astype(np.int32) if is_reordered else None,
        activations=activations,
    )


FORMS = {
    "int4": random_linear("int4"),
    "asymmetric int4": random_linear("int4", is_asymmetric=True),
    "reordered int4": random_linear("int4", is_reordered=True),
    "reordered asymmetric int4": random_linear("int4", is_asymmetric=True, is_reordered=True),
    "int8": random_linear("int8"),
    "int8 by token": random_linear("int8", activations="per_token"),
    "int8 by one scale": random_linear("int8", activations=0.03),
    "fp8": random_linear("fp8"),
    "fp8 by token": random_linear("fp8", activations="per_token"),
    "fp8 by one scale": random_linear("fp8", activations=0.01),
}
BY_CODES = {
    "int4": "MatMulNBits",
    "asymmetric int4": "MatMulNBits",
    "reordered int4": "MatMulNBits",
    "reordered asymmetric int4": "MatMulNBits",
    "int8": "MatMulNBits",
    "int8 by token": "MatMulIntegerToFloat",
    "int8 by one scale": "MatMulIntegerToFloat",
}
"""The op of ONNX Runtime that multiplies by the codes."""


def model_with(linears, directory, dtype=ir.DataType.FLOAT, rank=3):
    """A graph that is one product with each, all of one input; its weights lie in `directory`."""
    names = [NAME.replace("0", str(i)) for i in range(len(linears))]
    path = directory / "quantized.safetensors"
    write_quantized(path, names, dict(zip(names, linears, strict=True)).__getitem__)
    shapes = {name: linear.shape for name, linear in zip(names, linears, strict=True)}
    stored = stored_linears(read_safetensors_header(path), shapes)
    shape: list[Any] = ["B", "S", K][-rank:]
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape(shape))
    bias = ir.Value(name="bias", type=ir.TensorType(dtype), shape=ir.Shape([N]))
    graph = ir.Graph([x, bias], [], nodes=[], opset_imports={"": 24}, name="product")
    for i, name in enumerate(names):
        y = ir.Value(name=f"y{i}", type=ir.TensorType(dtype), shape=ir.Shape([*shape[:-1], N]))
        product(graph, f"/layers.{i}/up_proj", x, linear_values(graph, stored[name], dtype), y, bias)
        graph.outputs.append(y)
    return ir.Model(graph, ir_version=11)
