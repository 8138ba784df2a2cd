"""Every layout that is read, on the small checkpoint, against a generator that was written apart from the readers."""

from pathlib import Path

import numpy as np
import pytest

from export.checkpoint.tensors import Checkpoint, open_checkpoint
from export.models.qwen2_vl.model import load_reference
from tests.support.quantized_checkpoints import KINDS, quantize_checkpoint

TINY = Path("models/qwen2-vl-tiny")


@pytest.fixture(scope="module", params=KINDS, ids=str)
def opened(request, tmp_path_factory) -> tuple[str, Checkpoint, dict[str, np.ndarray]]:
    directory = tmp_path_factory.mktemp("quantized") / "checkpoint"
    meant = quantize_checkpoint(TINY, directory, KINDS[request.param])
    return request.param, open_checkpoint(directory), meant


def test_every_weight_means_what_its_codes_say(opened):
    _, checkpoint, meant = opened
    assert checkpoint.packed.keys() == meant.keys()
    for name, linear in checkpoint.packed.items():
        np.testing.assert_array_equal(linear.read().dequantized(), meant[name], err_msg=name)


def test_the_configuration_says_what_the_layers_are(opened):
    kind, checkpoint, _ = opened
    assert str(checkpoint.config.quantization) == KINDS[kind].description
    assert {linear.precision for linear in checkpoint.packed.values()} == {KINDS[kind].precision}
    activations = {linear.read().activations for linear in checkpoint.packed.values()}
    expected: str | float | None = None
    if "by token" in KINDS[kind].description:
        expected = "per_token"
    elif "static" in KINDS[kind].description:
        expected = 0.0625
    assert activations == {expected}


def test_what_is_not_quantized_stays_by_reference(opened):
    _, checkpoint, _ = opened
    assert "model.layers.0.self_attn.q_proj.bias" in checkpoint.tensors
    assert "visual.blocks.0.attn.qkv.weight" in checkpoint.tensors
    assert not checkpoint.linears


def test_the_reference_is_the_quantized_model_in_float32(opened):
    _, checkpoint, meant = opened
    reference = load_reference(checkpoint.directory)
    for name, weight in meant.items():
        np.testing.assert_array_equal(reference.get_parameter(name).numpy(), weight, err_msg=name)


def test_the_rounding_is_that_of_a_quantizer(opened):
    """The generator itself: what a layout means is near the weight that it was made of."""
    kind, _, meant = opened
    plain = load_reference(TINY)
    for name, weight in meant.items():
        original = plain.get_parameter(name).numpy()
        error = np.linalg.norm(weight - original) / np.linalg.norm(original)
        assert error < {"int4": 0.2, "int8": 0.02, "fp8": 0.04}[KINDS[kind].precision], name
