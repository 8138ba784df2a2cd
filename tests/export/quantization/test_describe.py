import pytest

from export.quantization.describe import precision_of
from export.quantization.side_file import stored_linears, write_quantized
from export.weights.safetensors_file import read_safetensors_header
from tests.support.quantized import random_linear

DECODER = "model.layers.{}.mlp.up_proj.weight"


def described(tmp_path, linears, tools=None):
    write_quantized(tmp_path / "quantized.safetensors", linears, linears.__getitem__)
    shapes = {name: linear.shape for name, linear in linears.items()}
    stored = stored_linears(read_safetensors_header(tmp_path / "quantized.safetensors"), shapes)
    return precision_of(stored, tools or {})


@pytest.mark.parametrize(
    ("linear", "words"),
    [
        (random_linear("int4"), "int4 in groups of 16"),
        (random_linear("int4", asymmetric=True), "int4 in groups of 16, asymmetric"),
        (random_linear("int8", asymmetric=True), "int8 in groups of 16"),
        (random_linear("int8", num_blocks=1), "int8 by rows"),
        (
            random_linear("int8", num_blocks=1, activations="per_token"),
            "int8 by rows, inputs rounded by token",
        ),
        (
            random_linear("fp8", num_blocks=1, activations=0.5),
            "fp8 by rows, inputs rounded by a static scale",
        ),
    ],
)
def test_a_layer_is_said_in_words(tmp_path, linear, words):
    assert described(tmp_path, {DECODER.format(0): linear}) == {"decoder": words}


def test_parts_are_said_apart_and_what_is_mixed_by_numbers(tmp_path):
    linears = {DECODER.format(layer): random_linear("int4") for layer in range(3)}
    linears |= {
        DECODER.format(3): random_linear("int8", num_blocks=1),
        "visual.blocks.0.mlp.fc1.weight": random_linear("int8", num_blocks=1),
        "lm_head.weight": random_linear("int8", num_blocks=1),
    }
    assert described(tmp_path, linears, {DECODER.format(layer): "GPTQ" for layer in range(3)}) == {
        "decoder": "int4 in groups of 16, by GPTQ (3 layers); int8 by rows (1 layers)",
        "head": "int8 by rows",
        "vision": "int8 by rows",
    }


def test_nothing_quantized_is_nothing_said():
    assert precision_of({}, {}) == {}
