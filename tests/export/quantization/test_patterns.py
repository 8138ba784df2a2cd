"""Every form of a quantized product: the right numbers in plain ONNX Runtime, by codes, and nothing for the lint."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from export.graphs.lint import lint, without_weights
from export.quantization.linear import FP8, Precision, QuantizedLinear
from export.quantization.patterns import product
from export.quantization.side_file import stored_linears, write_quantized
from export.weights.quantized import linear_values
from export.weights.safetensors_file import read_safetensors_header

NAME = "model.layers.0.mlp.up_proj.weight"
N, K, BLOCK = 48, 128, 32
ROUNDING = 2e-6


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


def rounded_input(x, linear):
    """What the product's input becomes."""
    if linear.activations is None:
        return x
    largest = 448 if linear.precision == "fp8" else 127
    scale = (
        np.abs(x).max(-1, keepdims=True) / np.float32(largest)
        if linear.activations == "per_token"
        else np.float32(linear.activations)
    )
    normal = np.clip(x / scale, -largest - (linear.precision == "int8"), largest)
    return scale * (normal.astype(FP8).astype(np.float32) if linear.precision == "fp8" else np.rint(normal))


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


def session(model, directory, level="1"):
    ir.save(model, directory / "model.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(directory / "optimized.onnx")
    options.log_severity_level = 3  # it warns of the optimized file
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    return ort.InferenceSession(directory / "model.onnx", options)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_a_product_gives_what_its_weight_means(form, rank, tmp_path):
    linear = FORMS[form]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, K)[-rank:], dtype=np.float32)
    bias = rng.standard_normal(N, dtype=np.float32)
    [y] = session(model_with([linear], tmp_path, rank=rank), tmp_path).run(None, {"x": x, "bias": bias})
    expected = rounded_input(x, linear).astype(np.float64) @ linear.dequantized().T.astype(np.float64) + bias
    assert np.abs(y - expected).max() < ROUNDING * np.abs(expected).max()


@pytest.mark.parametrize("form", BY_CODES)
def test_onnx_runtime_multiplies_every_product_by_codes(form, tmp_path):
    session(model_with([FORMS[form]] * 3, tmp_path), tmp_path)
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    assert Counter(node.op_type for node in nodes)[BY_CODES[form]] == 3
    expanded = [node.input[0] for node in nodes if node.op_type == "DequantizeLinear"]
    assert not [name for name in expanded if name.endswith(".codes")]


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.BFLOAT16, ir.DataType.FLOAT16])
@pytest.mark.parametrize("form", FORMS)
def test_no_form_is_a_finding(form, dtype, tmp_path):
    proto = without_weights(ir.to_proto(model_with([FORMS[form]] * 2, tmp_path, dtype)))
    onnx.checker.check_model(proto, full_check=True)
    assert lint(proto) == []


def test_a_token_of_zeros_stays_one(tmp_path):
    x = np.zeros((1, 2, K), np.float32)
    bias = np.ones(N, np.float32)
    [y] = session(model_with([FORMS["int8 by token"]], tmp_path), tmp_path).run(None, {"x": x, "bias": bias})
    np.testing.assert_array_equal(y, np.ones((1, 2, N)))


def test_a_weight_of_one_scale_for_each_output_is_regrouped_for_four_bits(tmp_path):
    """As GPTQ's group_size -1: a consumer would expand codes of whole outputs."""
    linear = replace(FORMS["int4"], scales=FORMS["int4"].scales[:, :1])
    proto = without_weights(ir.to_proto(model_with([linear], tmp_path)))
    assert lint(proto) == []
