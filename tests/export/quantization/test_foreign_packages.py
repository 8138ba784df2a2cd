"""Every layout against a package that writes it: bit for bit what that was given, or what it reads itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

from export.models.section import Section
from export.quantization.packed import PackedLinear, take_packed
from export.quantization.read_scheme import read_scheme
from export.weights.safetensors_file import read_safetensors_header
from tests.support.foreign_layers import CASES, packed
from tests.support.quantized_checkpoints import AWQ_CONFIG, gptq_config

NAME = "model.layers.0.mlp.up_proj"


def opened(path: Path, parts: dict[str, torch.Tensor], config: dict[str, Any], shape) -> PackedLinear:
    """A layer of a weight file, as a checkpoint with that configuration has it."""
    save_file(
        {f"{NAME}.{part}": values.contiguous() for part, values in parts.items()}, path / "a.safetensors"
    )
    problems: list[str] = []
    scheme = read_scheme(Section(config, problems), "config.json")
    assert scheme is not None
    found = {tensor.name: tensor for tensor in read_safetensors_header(path / "a.safetensors")}
    layers = take_packed(found, {f"{NAME}.weight": shape}, scheme, problems)
    assert problems == []
    return layers[f"{NAME}.weight"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_autoawq_and_gptqmodel_packed_is_read_as_what_they_were_given(tmp_path, case):
    config = {**AWQ_CONFIG, "group_size": case.group}
    if case.tool == "gptqmodel":
        config = gptq_config(
            bits=case.bits,
            group_size=case.group,
            sym=case.is_symmetric,
            desc_act=case.is_ordered,
            checkpoint_format="gptq" if case.is_first_version else "gptq_v2",
        )
    given = case.given()
    parts = {part: torch.from_numpy(values) for part, values in packed(case).items()}
    linear = opened(tmp_path, parts, config, given.codes.shape).read()
    order = np.arange(given.codes.shape[1]) if linear.order is None else linear.order
    middle = 2 ** (case.bits - 1)
    np.testing.assert_array_equal(linear.codes.astype(np.int64) + middle, given.codes[:, order])
    zeros = np.zeros_like(given.zeros) if linear.zeros is None else linear.zeros
    np.testing.assert_array_equal(zeros + middle, given.zeros)
    assert (linear.order is not None) == case.is_ordered
    assert (linear.zeros is None) == case.is_symmetric
    np.testing.assert_array_equal(linear.dequantized(), given.meant())


PRESETS = [
    *((preset, group) for preset in ("W4A16", "W4A16_ASYM", "W8A16") for group in (32, 128)),
    *((preset, None) for preset in ("W8A8", "INT8", "FP8", "FP8_DYNAMIC")),
]


@pytest.mark.parametrize(("preset", "group"), PRESETS)
def test_what_compressed_tensors_writes_is_read_as_it_reads_it(tmp_path, preset, group):
    scheme = preset_name_to_scheme(preset, ["Linear"])
    if group is not None:
        scheme.weights.group_size = group
    weight = torch.randn(48, 256, generator=torch.Generator().manual_seed(0))
    scale, zero = _parameters(weight, scheme.weights)
    form = _format_of(scheme)
    scheme.format = form
    state = {"weight": weight, "weight_scale": scale}
    if not scheme.weights.symmetric:
        state["weight_zero_point"] = zero
    compressor = BaseCompressor.get_value_from_registry(form)
    parts = dict(compressor.compress(dict(state), scheme))
    own = compressor.decompress({name: values.clone() for name, values in parts.items()}, scheme)["weight"]
    if preset == "FP8":
        parts["input_scale"] = torch.tensor([0.25])
    config = json.loads(
        QuantizationConfig(
            config_groups={"group_0": scheme}, ignore=["lm_head"], format=form
        ).model_dump_json()
    )
    linear = opened(tmp_path, parts, config, (48, 256)).read()
    np.testing.assert_array_equal(linear.dequantized(), own.float().numpy())
    np.testing.assert_array_equal(
        linear.codes.astype(np.float32), quantize(weight, scale, zero, scheme.weights).float().numpy()
    )
    expected: dict[str, object] = {
        "W8A8": "per_token",
        "INT8": "per_token",
        "FP8_DYNAMIC": "per_token",
        "FP8": 0.25,
    }
    assert linear.activations == expected.get(preset)


def _parameters(weight: torch.Tensor, arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points of the greatest and the least values, by the package's own rule."""
    if arguments.strategy == "group":
        blocks = weight.reshape(len(weight), -1, arguments.group_size)
    else:
        blocks = weight.reshape(1, 1, -1) if arguments.strategy == "tensor" else weight[:, None]
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), arguments)
    return (scale.reshape(-1), zero.reshape(-1)) if arguments.strategy == "tensor" else (scale, zero)


def _format_of(scheme: Any) -> str:
    if scheme.weights.type == "float":
        return "float-quantized"
    return "pack-quantized" if scheme.input_activations is None else "int-quantized"
