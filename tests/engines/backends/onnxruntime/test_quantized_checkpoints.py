"""Checkpoints as tools quantize them, from export to answers on ONNX Runtime."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from engines.backends.onnxruntime.session import OnnxRuntimeDecoder, create_session
from engines.runtime.answer import Request
from engines.runtime.generate import collect_generations, generate_batch
from examples.demo import demo_questions
from examples.tiny.reference_sessions import open_reference
from export.bundle import open_bundle
from export.checkpoint.generation_config import load_generation_config
from export.checkpoint.tensors import open_checkpoint
from export.errors import UserError
from export.models.qwen2_vl.model import load_reference
from export.processor.processor import Processor
from qv_export import api
from tests.support.cases import CASES, make_batch
from tests.support.quantized_checkpoints import KINDS, quantize_checkpoint
from tests.support.sessions import relative_error
from validate.reference.sessions import ReferenceDecoder

TINY = Path("models/qwen2-vl-tiny")
ROUNDING = 1e-5
ROUNDED_INPUTS = 0.05
NUM_SLOTS, CAPACITY = 5, 224
CASE = next(case for case in CASES if case.name == "text")

OFTEN = ("awq", "gptq int8 asymmetric, ordered")
"""Zero points, an order of inputs, and two planes; the others take what these do not, but seldom break."""


def largest_inputs() -> dict[str, float]:
    """Of each linear layer, while the reference answers the demo: what a tool measures to find static scales."""
    vision, decoder = open_reference(TINY, len(demo_questions()))
    largest: dict[str, float] = {}

    def keep(name):
        def hook(module, inputs):
            largest[name] = max(largest.get(name, 0.0), float(inputs[0].abs().max()))

        return hook

    for name, module in decoder._model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(keep(f"{name}.weight"))
    answers_of(vision, decoder)
    return largest


def answers_of(vision, decoder) -> list[str]:
    """What a model says to the demo's questions."""
    processor, settings = Processor.from_directory(TINY), load_generation_config(TINY)
    messages = [[{"role": "user", "content": question.content()}] for question in demo_questions()]
    requests = [Request(processor.inputs_from_messages(message), settings) for message in messages]
    events = generate_batch(requests, vision, decoder, model=processor.config)
    return [
        processor.tokenizer.decode(
            [token for token in generation.token_ids if token not in settings.eos_token_ids],
            skip_special_tokens=False,
        )
        for generation in collect_generations(events)
    ]


@pytest.fixture(
    scope="module",
    params=[kind if kind in OFTEN else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
    ids=str,
)
def exported(request, tmp_path_factory):
    """The kind's name, the checkpoint, the float32 weights that it means, its bundle."""
    base = tmp_path_factory.mktemp("checkpoint")
    largest = largest_inputs() if "static" in request.param else None
    meant = quantize_checkpoint(TINY, base / "checkpoint", KINDS[request.param], largest_inputs=largest)
    api.export(base / "checkpoint", base / "bundle", dtype="float32")
    return request.param, base / "checkpoint", meant, base / "bundle"


def test_the_bundle_holds_the_weights_that_the_checkpoint_means(exported):
    _, checkpoint, meant, bundle = exported
    reference = load_reference(bundle)
    for name, weight in meant.items():
        # Planes of 8-bit codes are a sum of two products.
        np.testing.assert_allclose(reference.get_parameter(name), weight, rtol=1e-5, atol=1e-7, err_msg=name)
    assert "quantization_config" in json.loads((checkpoint / "config.json").read_text())
    assert "quantization_config" not in json.loads((bundle / "config.json").read_text())
    opened = open_checkpoint(bundle)
    assert opened.linears.keys() == meant.keys()
    assert not opened.packed


def test_the_manifest_says_how_the_layers_are_stored_and_whose_codes_they_are(exported):
    kind, _, _, bundle = exported
    precision = open_bundle(bundle).manifest.precision
    assert precision.keys() == {"decoder"}
    tool = KINDS[kind].description.partition(":")[0]
    for layers in precision["decoder"].split("; "):  # those of other widths may be in blocks of another size
        assert layers.startswith(KINDS[kind].precision)
        assert f", by {tool}" in layers


def test_it_carries_no_code_twice(exported):
    bundle = exported[-1]
    files = {record.name for record in open_bundle(bundle).manifest.weights}
    assert files == {"model.safetensors", "quantized.safetensors"}
    stored = {tensor.name for tensor in open_checkpoint(bundle).tensors.values()}
    assert not any("proj.weight" in name for name in stored if name.startswith("model.layers"))


def test_logits_are_those_of_the_quantized_reference(exported):
    _, checkpoint, _, bundle = exported
    reference = load_reference(checkpoint)
    batch = make_batch(CASE, reference.config)
    embeds = np.zeros((0, reference.config.decoder.hidden_size), np.float32)
    expected = batch.valid(ReferenceDecoder(reference, NUM_SLOTS, CAPACITY).forward(0, batch.prefill(embeds)))
    decoder = OnnxRuntimeDecoder(open_bundle(bundle), NUM_SLOTS, CAPACITY, rounds_inputs=False)
    logits = batch.valid(decoder.forward(0, batch.prefill(embeds)))
    rounds = any(linear.activations for linear in open_checkpoint(bundle).linears.values())
    assert relative_error(logits, expected) < (ROUNDED_INPUTS if rounds else ROUNDING)


def test_it_answers_the_demo_as_the_quantized_reference_does(exported):
    kind, checkpoint, _, bundle = exported
    model = api.load(bundle)
    said = [
        str(model.generate([{"role": "user", "content": question.content()}]))
        for question in demo_questions()
    ]
    expected = answers_of(*open_reference(checkpoint, len(said)))
    # The reference does not round inputs.
    num_different = sum(ours != theirs for ours, theirs in zip(said, expected, strict=True))
    assert num_different <= 1, (said, expected)
    if kind in OFTEN:
        assert said == [question.answer for question in demo_questions()]


@pytest.mark.parametrize("kind", ["awq", "W4A16 asymmetric"])
def test_zero_points_whose_scales_are_float16_or_bfloat16_are_folded_as_numbers(tmp_path, kind):
    quantize_checkpoint(TINY, tmp_path / "checkpoint", KINDS[kind])
    model = api.load(api.export(tmp_path / "checkpoint", tmp_path / "bundle"))
    question = demo_questions()[0]
    said = str(model.generate([{"role": "user", "content": question.content()}]))
    assert said == question.answer


def test_every_product_is_computed_with_its_codes(exported, tmp_path, monkeypatch):
    kind, _, meant, bundle = exported
    made = ort.SessionOptions

    def options():
        options = made()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        return options

    monkeypatch.setattr(ort, "SessionOptions", options)
    create_session(open_bundle(bundle), "decoder", 1, may_pack=False)
    nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    counts = Counter(node.op_type for node in nodes)
    # A CPU has no product of fp8: it is widened when the session is opened.
    num_products = 0 if KINDS[kind].precision == "fp8" else len(meant)
    assert counts["MatMulNBits"] + counts["MatMulIntegerToFloat"] == num_products, counts


def test_a_link_keeps_the_checkpoints_own_file_beside_the_side_file(tmp_path):
    meant = quantize_checkpoint(TINY, tmp_path / "checkpoint", KINDS["W4A16"])
    manifest = api.export(tmp_path / "checkpoint", tmp_path / "bundle", weights="link").manifest
    assert {record.name for record in manifest.weights} == {"model.safetensors", "quantized.safetensors"}
    linked = tmp_path / "bundle" / "model.safetensors"
    assert linked.samefile(tmp_path / "checkpoint" / "model.safetensors")
    assert open_checkpoint(tmp_path / "bundle").linears.keys() == meant.keys()
    # The model is one of bfloat16: float16, which tools store, overflows.
    assert manifest.dtype == "bfloat16"


def test_a_checkpoint_that_is_quantized_is_not_quantized_again(tmp_path):
    quantize_checkpoint(TINY, tmp_path / "checkpoint", KINDS["W4A16"])
    with pytest.raises(UserError, match="is quantized already"):
        api.export(tmp_path / "checkpoint", tmp_path / "bundle", quantize="int4")
    assert not (tmp_path / "bundle").exists()


def test_an_adapter_is_not_merged_into_quantized_weights(tmp_path):
    from tests.support.adapters import write_adapter

    quantize_checkpoint(TINY, tmp_path / "checkpoint", KINDS["W4A16"])
    write_adapter(tmp_path / "adapter", {})
    with pytest.raises(UserError, match="which no adapter is merged into"):
        api.export(tmp_path / "checkpoint", tmp_path / "bundle", adapter=tmp_path / "adapter")
