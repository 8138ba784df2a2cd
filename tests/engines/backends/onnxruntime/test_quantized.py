"""Bundles with quantized weights on ONNX Runtime: the reference's numbers, and products that read codes."""

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from engines.backends.onnxruntime.kernels import kernels_by_codes
from engines.backends.onnxruntime.session import OnnxRuntimeDecoder, OnnxRuntimeVision, create_session
from engines.backends.quantized_products import quantized_products
from examples.demo import demo_questions
from export.bundle import open_bundle
from export.checkpoint.tensors import open_checkpoint
from export.quantization.make import Part
from export.weights.safetensors_file import read_safetensors_header
from qv_export import api
from tests.support.bundles import shared_bundle
from tests.support.cases import CASES, SHAPES, make_batch
from tests.support.sessions import encode, relative_error
from validate.reference.sessions import ReferenceDecoder, ReferenceVision

ROUNDING = 1e-5
ROUNDED_INPUTS = 0.1
"""Of the largest logit: inputs rounded to 8 bits by block, in a random model of three layers. Measured: 3e-2."""
SCHEMES: dict[str, dict[Part, str]] = {
    "int4": {"decoder": "int4"},
    "int4 in bfloat16": {"decoder": "int4"},
    "int8-weights": {"decoder": "int8-weights", "vision": "int8-weights"},
    "int4 with the tied head": {"decoder": "int4", "head": "int4"},
    "int8-weights with the tied head": {"decoder": "int8-weights", "head": "int8-weights"},
    "int4 with the untied head": {"decoder": "int4", "head": "int8-weights"},
}
CHECKPOINT = Path("models/qwen2-vl-tiny")
CASE = {case.name: case for case in CASES}
SHAPE = {shape.name: shape for shape in SHAPES}
NUM_SLOTS, CAPACITY = 5, 224
SHAPE_OF = {
    "int4 in bfloat16": SHAPE["ratio1_dim128_bfloat"],
    "int4 with the tied head": SHAPE["ratio6_dim128"],
    "int8-weights with the tied head": SHAPE["ratio6_dim128"],
    "int4 with the untied head": SHAPE["ratio2_dim128"],
}


@pytest.fixture(scope="module", params=SCHEMES)
def quantized(request, tmp_path_factory):
    """An opened bundle, and the reference of the same weights."""
    from export.models.qwen2_vl.model import load_reference

    shape = SHAPE_OF.get(request.param, SHAPE["ratio8_dim64"])
    directory = shared_bundle(tmp_path_factory, shape.arguments(), quantize=SCHEMES[request.param])
    return open_bundle(directory), load_reference(directory)


def optimized_ops(bundle, graph, tmp_path, monkeypatch):
    """What ONNX Runtime makes of a graph, as our session opens it."""
    plain = ort.SessionOptions

    def options():
        made = plain()
        made.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        return made

    monkeypatch.setattr(ort, "SessionOptions", options)
    create_session(bundle, graph, 1, may_pack=graph == "vision")
    nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    return Counter(node.op_type for node in nodes)


def test_logits_are_those_of_the_weights_that_the_codes_mean(quantized):
    bundle, reference = quantized
    batch = make_batch(CASE["image_and_video"], reference.config)
    width = reference.config.decoder.hidden_size
    expected_embeds = encode(ReferenceVision(reference), batch, width)
    embeds = encode(OnnxRuntimeVision(bundle, rounds_inputs=False), batch, width)
    assert relative_error(embeds, expected_embeds) < ROUNDING

    expected = batch.valid(
        ReferenceDecoder(reference, NUM_SLOTS, CAPACITY).forward(0, batch.prefill(expected_embeds))
    )
    for rounds_inputs, tolerance in ((False, ROUNDING), (True, ROUNDED_INPUTS)):
        decoder = OnnxRuntimeDecoder(bundle, NUM_SLOTS, CAPACITY, rounds_inputs=rounds_inputs)
        logits = batch.valid(decoder.forward(0, batch.prefill(expected_embeds)))
        assert relative_error(logits, expected) < tolerance


def test_every_quantized_product_is_computed_with_its_codes(quantized, tmp_path, monkeypatch):
    bundle, reference = quantized
    ops = optimized_ops(bundle, "decoder", tmp_path, monkeypatch)
    num_linears = 7 * reference.config.decoder.num_hidden_layers
    head = {"model.embed_tokens.weight", "lm_head.weight"} & open_checkpoint(bundle.directory).linears.keys()
    assert ops["MatMulNBits"] == num_linears + bool(head)
    assert ops["DequantizeLinear"] == 0


def test_what_ran_is_told_product_by_product(quantized):
    bundle, _ = quantized
    canonical = onnx.load(bundle.graph("decoder"), load_external_data=False)
    names = {product.name for product in quantized_products(canonical.graph)}
    assert names
    assert kernels_by_codes(bundle, "decoder") == names


def test_a_head_that_is_shared_with_us_is_not_packed_beside_it(tmp_path_factory):
    shape = SHAPE["ratio1_dim128_bfloat"]
    bundle = open_bundle(shared_bundle(tmp_path_factory, shape.arguments(), quantize={"decoder": "int4"}))
    session, weights = create_session(bundle, "decoder", 1, may_pack=False)
    assert [value.name for value in session.get_overridable_initializers()] == ["lm_head.weight"]
    assert weights


def test_a_bundle_carries_no_weight_that_no_graph_reads(quantized):
    bundle, _ = quantized
    assert {record.name for record in bundle.manifest.weights} == {
        "model.safetensors",
        "quantized.safetensors",
    }
    read = {
        tensor.name
        for graph in ("vision", "decoder")
        for tensor in onnx.load(bundle.graph(graph), load_external_data=False).graph.initializer
    }
    stored = {
        tensor.name
        for record in bundle.manifest.weights
        for tensor in read_safetensors_header(bundle.directory / record.name)
    }
    assert {name for name in stored if not name.endswith("activation_scale")} <= read


@pytest.mark.skipif(not CHECKPOINT.exists(), reason="models/qwen2-vl-tiny is not in this checkout")
def test_the_small_checkpoint_in_four_bits_answers_the_demo(tmp_path):
    model = api.load(api.export(CHECKPOINT, tmp_path / "bundle", quantize="int4"))
    questions = demo_questions()
    said = [str(model.generate([{"role": "user", "content": question.content()}])) for question in questions]
    assert said == [question.answer for question in questions]
