"""Every form of a quantized product: the right numbers in plain ONNX Runtime, by codes, and nothing for the lint."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from export.graphs.lint import lint, without_weights
from tests.support.quantized_forms import BY_CODES, FORMS, K, N, model_with
from tests.support.quantized_sessions import rounded_input, session

ROUNDING = 2e-6


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
