"""What the engine inspector says of quantized products, on graphs that keep codes and on graphs that do not."""

import onnx
import onnx_ir as ir
import pytest

from engines.backends.tensorrt.build.low_bit import products_by_codes, require_architectures
from export.errors import UserError
from tests.support.quantized_forms import FORMS, K, model_with
from tests.support.quantized_traps import PRODUCT, QUANTIZED_TRAPS
from tests.support.quantized_traps import K as K_OF_TRAPS
from tests.support.rtx_models import ask_rtx, request

FUSED = (
    "Name: fused, LayerType: runtime_fusion, Inputs: [ { Name: x, Dimensions: [-1,192], Datatype: BFloat16 }], "
    "Constants: [ { Name: c, Dimensions: [192,96], Datatype: Int4 }, "
    "{ Name: s, Dimensions: [3,96], Datatype: BFloat16 }], "
    "Outputs: [ { Name: y, Dimensions: [-1,96], Datatype: BFloat16 }], TacticName: , StreamId: 1, "
    "Metadata: [ONNX Layer: /q/DequantizeLinear][ONNX Layer: /q/MatMul]"
)
EXPANDED = (
    "Name: kgen, LayerType: kgen, Inputs: [], Constants: [ { Name: c, Dimensions: [192,96], Datatype: Int4 }], "
    "Outputs: [ { Name: w, Dimensions: [96,192], Datatype: BFloat16 }], TacticName: , StreamId: 1, "
    "Metadata: [ONNX Layer: /q/DequantizeLinear][ONNX Layer: /q/MatMul]"
)
RTX_TRAPS = {name: trap for name, trap in QUANTIZED_TRAPS.items() if trap.expanded_by == "tensorrt-rtx"}


def test_a_layer_that_reads_codes_and_gives_a_product_computes_with_them():
    assert products_by_codes(FUSED) == {"/q/DequantizeLinear", "/q/MatMul"}


def test_a_layer_that_turns_codes_into_a_weight_expands_them_in_whatever_profile():
    assert products_by_codes(EXPANDED) == set()
    assert products_by_codes(f"{FUSED}\n{EXPANDED}") == set()


def test_scales_in_low_precision_are_no_weight():
    assert products_by_codes(FUSED.replace("[192,96]", "[96]")) == set()


def test_8_bit_floats_are_refused_where_there_are_no_products_of_them():
    model = onnx.ModelProto()
    model.graph.initializer.add(data_type=onnx.TensorProto.FLOAT8E4M3FN)
    require_architectures(model, (89, 120))
    with pytest.raises(UserError, match=r"SM80.*--quantize int8"):
        require_architectures(model, (80, 89))


def test_bfloat16_weights_are_refused_where_there_is_no_bfloat16():
    model = onnx.ModelProto()
    model.graph.initializer.add(data_type=onnx.TensorProto.FLOAT16)
    require_architectures(model, (75, 80))
    model.graph.initializer.add(data_type=onnx.TensorProto.BFLOAT16)
    require_architectures(model, (80, 120))
    with pytest.raises(UserError, match=r"SM75 has no bfloat16.*stored in float16"):
        require_architectures(model, (75, 80))


def asked(directory, model, k, sm):
    return request(directory / "model.onnx", model, {"x": ([1, k], [8, k], [16, k])}, sm=[sm])


@pytest.mark.tensorrt
def test_rtx_still_expands_what_the_lint_says(tmp_path):
    requests = []
    for name, trap in RTX_TRAPS.items():
        directory = tmp_path / name.replace(" ", "_")
        directory.mkdir()
        requests.append(asked(directory, trap.model(), K_OF_TRAPS, trap.sm))
    for (name, trap), answer in zip(RTX_TRAPS.items(), ask_rtx(requests), strict=True):
        assert answer["built"] == (trap.ends != "unbuildable"), (name, answer["errors"])
        if trap.ends == "expanded":
            assert PRODUCT not in products_by_codes(answer["inspected"]), name


@pytest.mark.tensorrt
def test_rtx_computes_every_form_with_its_codes(tmp_path):
    requests, names = [], []
    for form in FORMS:
        for sm in (80, 89, 120) if "fp8" not in form else (89, 120):
            directory = tmp_path / f"{form.replace(' ', '_')}-{sm}"
            directory.mkdir()
            model = ir.to_proto(model_with([FORMS[form]], directory, ir.DataType.BFLOAT16, rank=2))
            requests.append(asked(directory, model, K, sm))
            names.append(f"{form} on SM{sm}")
    for name, answer in zip(names, ask_rtx(requests), strict=True):
        assert answer["built"], (name, answer["errors"])
        products = {node for node in products_by_codes(answer["inspected"]) if node.endswith("/MatMul")}
        assert products, (name, answer["inspected"])
