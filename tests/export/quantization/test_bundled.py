"""A checkpoint's weights with a side file of quantized ones beside them, as a bundle has them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from export.checkpoint.tensors import open_checkpoint
from export.errors import UserError
from export.models.qwen2_vl.model import load_reference
from export.quantization.side_file import write_quantized
from export.weights.names import QUANTIZED_FILE
from export.weights.safetensors_file import read_safetensors_header
from export.weights.writer import NewTensor, write_index, write_safetensors
from tests.support.quantized import random_linear

TINY = Path("models/qwen2-vl-tiny")
LINEARS = {
    "model.layers.0.mlp.up_proj.weight": random_linear("int4", (384, 192), 3, asymmetric=True, ordered=False),
    "model.layers.1.self_attn.q_proj.weight": random_linear("int8", (192, 192), 1, activations="per_token"),
    "visual.blocks.0.mlp.fc1.weight": random_linear("fp8", (480, 160), 1),
}


@pytest.fixture
def bundled(tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY / name, tmp_path / name)
    write_quantized(tmp_path / QUANTIZED_FILE, LINEARS, LINEARS.__getitem__)
    write_index(tmp_path, [tmp_path / "model.safetensors", tmp_path / QUANTIZED_FILE])
    return tmp_path


def test_the_side_file_takes_the_place_of_the_weights_that_it_has(bundled):
    checkpoint = open_checkpoint(bundled)
    assert checkpoint.linears.keys() == LINEARS.keys()
    assert not checkpoint.tensors.keys() & LINEARS.keys()
    assert "visual.blocks.0.mlp.fc1.bias" in checkpoint.tensors


def test_the_reference_computes_with_what_the_codes_mean(bundled):
    reference, plain = load_reference(bundled), load_reference(TINY)
    for name, weight in reference.named_parameters():
        expected = LINEARS[name].dequantized() if name in LINEARS else plain.get_parameter(name).numpy()
        np.testing.assert_array_equal(weight.numpy(), expected, err_msg=name)
    half = load_reference(bundled, torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


def test_a_weight_of_integers_is_refused_with_its_dtype(bundled):
    (bundled / "model.safetensors.index.json").unlink()
    stored = read_safetensors_header(TINY / "model.safetensors")
    new = [
        NewTensor(
            tensor.name,
            "int8" if tensor.name.endswith("0.mlp.up_proj.weight") else tensor.dtype,
            tensor.shape,
        )
        for tensor in stored
    ]
    (bundled / "model.safetensors").unlink()
    sizes = {tensor.name: tensor.length_bytes for tensor in new}
    write_safetensors(bundled / "model.safetensors", new, lambda name: bytes(sizes[name]))
    with pytest.raises(
        UserError, match=r"layers\.0\.mlp\.up_proj\.weight: dtype int8, expected one of float32"
    ):
        open_checkpoint(bundled)
