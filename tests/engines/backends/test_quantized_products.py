import onnx
from onnx import TensorProto

from engines.backends.quantized_products import quantized_products, told
from tests.support.quantized_traps import PRODUCT, QUANTIZED_TRAPS, Parts

TRAP = QUANTIZED_TRAPS["4 bits, a scale for each output"]


def sound_model():
    parts = Parts(TensorProto.FLOAT)
    parts.weight(TensorProto.INT8, (128,), axis=1)
    parts.node("MatMul", ["x", "w"], "y", PRODUCT)
    return onnx.helper.make_model(onnx.helper.make_graph(parts.nodes, "g", [], [], parts.initializers))


def test_a_product_is_found_through_a_transposition():
    trap = QUANTIZED_TRAPS["4 bits [N, K]"].model()
    [product] = quantized_products(trap.graph)
    assert (product.name, product.precision) == (PRODUCT, "int4")


def test_a_plain_graph_has_nothing_to_tell():
    assert told(onnx.ModelProto(), (), "onnxruntime", {}) == ((), ())


def test_products_by_codes_are_counted_and_ask_for_nothing():
    notes, warnings = told(sound_model(), {PRODUCT}, "tensorrt-rtx", {})
    assert notes == ("1 of 1 products with quantized weights are computed with their codes",)
    assert warnings == ()


def test_an_expanded_product_is_named_with_the_lints_reason():
    notes, [warning] = told(TRAP.model(), (), "tensorrt-rtx", {})
    assert notes == ("0 of 1 products with quantized weights are computed with their codes",)
    assert PRODUCT in warning.message
    assert "a scale for each output" in warning.message
    assert (warning.count, warning.is_expected) == (1, False)


def test_a_targets_own_reason_comes_first_and_no_reason_is_said_too():
    [known] = told(sound_model(), (), "onnxruntime", {"int8": "it has none"})[1]
    [unknown] = told(sound_model(), (), "onnxruntime", {})[1]
    assert known.message.endswith("it has none")
    assert unknown.message.endswith("onnxruntime gives no reason")
