import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from export.quantization.side_file import stored_linears, write_quantized
from export.weights.quantized import linear_values
from export.weights.safetensors_file import read_safetensors_header
from tests.support.quantized import random_linear

NAME = "model.layers.0.mlp.up_proj.weight"


def values_of(tmp_path, linear, dtype):
    path = tmp_path / "quantized.safetensors"
    write_quantized(path, [NAME], lambda _: linear)
    stored = stored_linears(read_safetensors_header(path), {NAME: linear.shape})
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="parts")
    return graph, linear_values(graph, stored[NAME], dtype)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_onnx_runtime_dequantizes_the_bytes_to_what_they_mean(tmp_path, asymmetric):
    linear = random_linear("int4", (24, 64), asymmetric=asymmetric)
    graph, values = values_of(tmp_path, linear, ir.DataType.FLOAT)
    inputs = [values.codes, values.scales]
    weight = ir.node("DequantizeLinear", inputs, {"axis": 0, "block_size": 16})
    graph.append(weight)
    outputs = [weight.outputs[0]]
    assert (values.offsets is not None) == asymmetric
    if values.offsets is not None:
        offsets = ir.node("Identity", [values.offsets])
        graph.append(offsets)
        outputs.append(offsets.outputs[0])
    for value in outputs:
        value.dtype = ir.DataType.FLOAT
    graph.outputs.extend(outputs)
    ir.save(ir.Model(graph, ir_version=11), tmp_path / "parts.onnx")
    weight, *table = onnxruntime.InferenceSession(tmp_path / "parts.onnx").run(None, {})
    if table:
        weight -= np.repeat(table[0], 16, axis=0)
    np.testing.assert_allclose(weight.T, linear.dequantized(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("linear", "codes"),
    [
        (random_linear("int4"), ("INT4", [64, 24])),
        (random_linear("int8", num_blocks=1), ("INT8", [64, 24])),
        (random_linear("fp8", num_blocks=1), ("FLOAT8E4M3FN", [24, 64])),
    ],
)
def test_the_parts_are_references_into_the_file_and_the_graph_is_sound(tmp_path, linear, codes):
    graph, values = values_of(tmp_path, linear, ir.DataType.BFLOAT16)
    assert values.codes.dtype is not None
    assert (values.codes.dtype.name, list(values.codes.shape or ())) == codes
    assert isinstance(values.codes.const_value, ir.ExternalTensor)
    assert values.codes.const_value.location == "quantized.safetensors"
    assert values.scales.dtype == ir.DataType.BFLOAT16
    graph.outputs.append(values.scales)
    ir.save(ir.Model(graph, ir_version=11), tmp_path / "parts.onnx")
    onnx.checker.check_model(tmp_path / "parts.onnx")


def test_order_and_scale_of_activations_are_values_too(tmp_path):
    linear = random_linear("fp8", num_blocks=1, ordered=False, activations=0.5)
    _, values = values_of(tmp_path, linear, ir.DataType.FLOAT16)
    assert values.order is not None
    assert values.activation_scale is not None
    assert (values.order.dtype, values.activation_scale.dtype) == (ir.DataType.INT32, ir.DataType.FLOAT16)
    assert values.linear.activations == "static"


def test_a_scale_of_each_token_is_no_value(tmp_path):
    _, values = values_of(
        tmp_path, random_linear("int8", num_blocks=1, activations="per_token"), ir.DataType.FLOAT
    )
    assert values.activation_scale is None
    assert values.linear.activations == "per_token"
