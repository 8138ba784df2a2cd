import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from plugins.quantized_cache_attention import onnx_functions
from plugins.quantized_cache_attention.reference import (
    dequantize,
    quantize,
    quantized_cache_attention,
)
from plugins.registry import QUANTIZED_CACHE_ATTENTION
from tests.plugins.cached_attention.test_onnx_functions import (
    CALLS,
    CALLS_OF_ORT,
    HEADS,
    TOLERANCE,
    attention_inputs,
)
from tests.support.op_models import op_model

TORCH_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
NUMPY_DTYPES = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}


def tensors_of(call, heads, precision):
    """The inputs of the op, over a cache that holds something."""
    q, k, v, past_key, past_value, write_index, kv_lengths = map(
        torch.from_numpy, attention_inputs(call, heads)
    )
    (key, key_scale), (value, value_scale) = (
        quantize(past, TORCH_DTYPES[precision]) for past in (past_key, past_value)
    )
    return [q, k, v, key, value, key_scale, value_scale, write_index, kv_lengths]


def run(body, precision, inputs, *, is_bytes):
    """By ONNX Runtime. Args: is_bytes: the body has 8-bit floats as bytes."""
    arrays = [x.view(torch.uint8).numpy() if x.dtype == torch.float8_e4m3fn else x.numpy() for x in inputs]
    if precision == "fp8" and not is_bytes:
        arrays = [x.view(ml_dtypes.float8_e4m3fn) if x.dtype == np.uint8 else x for x in arrays]
    model = op_model(QUANTIZED_CACHE_ATTENTION, body, arrays)
    for output, past in zip(model.graph.output[1:3], model.graph.input[3:5], strict=True):
        output.type.tensor_type.elem_type = past.type.tensor_type.elem_type
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # TensorScatter warns when past and present are not one buffer, as here
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, dict(zip(QUANTIZED_CACHE_ATTENTION.inputs, arrays, strict=True)))


def assert_valid_parts_equal(results, inputs):
    attended, *caches = quantized_cache_attention(*inputs)
    for row, (start, end) in enumerate(zip(inputs[7].tolist(), inputs[8].tolist(), strict=True)):
        length = end - start
        np.testing.assert_allclose(results[0][row, :length], attended[row, :length], atol=TOLERANCE)
        for result, cache in zip(results[1:3], caches[:2], strict=True):
            codes = cache.view(torch.uint8).numpy()
            np.testing.assert_array_equal(result.view(np.uint8)[row, :, :end], codes[row, :, :end])
        for result, scale in zip(results[3:], caches[2:], strict=True):
            np.testing.assert_allclose(result[row, :, :end], scale[row, :, :end], rtol=1e-6)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_portable_body_equals_the_reference(call, heads):
    inputs = tensors_of(call, heads, "int8")
    body = onnx_functions.portable("int8")
    assert_valid_parts_equal(run(body, "int8", inputs, is_bytes=False), inputs)


@pytest.mark.parametrize("heads", HEADS)
def test_the_portable_body_of_8_bit_floats_is_sound_although_no_runtime_scatters_them(heads):
    inputs = tensors_of(CALLS["prefill"], heads, "fp8")
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.NotImplemented, match="TensorScatter"):
        run(onnx_functions.portable("fp8"), "fp8", inputs, is_bytes=False)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("call", CALLS_OF_ORT)
@pytest.mark.parametrize("precision", TORCH_DTYPES)
def test_the_onnxruntime_body_equals_the_reference(call, heads, precision):
    inputs = tensors_of(CALLS[call], heads, precision)
    body = onnx_functions.onnxruntime(precision, *heads)
    assert_valid_parts_equal(run(body, precision, inputs, is_bytes=True), inputs)


def test_every_size_of_an_8_bit_float_becomes_its_own_byte():
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    numbers = torch.where(codes.float().isnan(), torch.zeros(256), codes.float()).reshape(2, 1, 1, 128)
    numbers[..., 0] = 448.0  # the largest code in each row, so that the scale is one
    inputs = tensors_of((1, [0, 0], [1, 1]), (1, 1, 128), "fp8")
    inputs[1] = inputs[2] = numbers
    stored = run(onnx_functions.onnxruntime("fp8", 1, 1, 128), "fp8", inputs, is_bytes=True)[1]
    expected = numbers.reshape(2, 128).to(torch.float8_e4m3fn).view(torch.uint8)
    # Zero has two bytes, and the sign of none.
    is_zero = (expected & 127) == 0
    assert (torch.from_numpy(stored[:, 0, 0]) == torch.where(is_zero, 0, expected)).all()


@pytest.mark.parametrize("precision", TORCH_DTYPES)
def test_codes_mean_what_was_written_to_half_a_step(precision):
    x = (
        torch.randn(5, 3, 64, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-3, 1, 100])[:, None]
    )
    codes, scale = quantize(x, TORCH_DTYPES[precision])
    largest = x.abs().amax(-1, keepdim=True)
    bound = largest / 254 if precision == "int8" else (x.abs() / 16).maximum(largest / 448 / 1024)
    assert ((dequantize(codes, scale) - x).abs() <= bound * (1 + 1e-5)).all()
    assert not dequantize(*quantize(torch.zeros(1, 8), TORCH_DTYPES[precision])).any()


@pytest.mark.parametrize("precision", TORCH_DTYPES)
def test_a_turned_tie_changes_one_channel_of_a_row_by_one_code(precision):
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    codes, _ = quantize(x, TORCH_DTYPES[precision])
    turned, _ = quantize(x, TORCH_DTYPES[precision], turns_a_tie=True)
    assert ((codes.float() != turned.float()).sum(-1) == 1).all()
