"""Quantized copies of a checkpoint in every layout that is read, written apart from the readers.

Each weight is rounded to the nearest code; layouts are written by shifts of bits, as their tools document them.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.torch import save_file

Array = np.ndarray[Any, Any]
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)

QUANTIZED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Rounded:
    """A weight [N, K] rounded: unsigned codes [N, K], scales and zero points [N, G], the group of each input [K]."""

    codes: Array
    scales: Array
    zeros: Array
    groups: Array

    def meant(self) -> Array:
        """float32 [N, K]."""
        difference = self.codes.astype(np.int64) - self.zeros.astype(np.int64)[:, self.groups]
        return difference.astype(np.float32) * self.scales.astype(np.float32)[:, self.groups]


def round_weight(
    weight: Array, bits: int, group: int, *, symmetric: bool, scale_dtype: Any, shuffle: int | None = None
) -> Rounded:
    """Round to the nearest code, in groups of inputs; `shuffle`: seed of an order that scatters the groups."""
    num_outputs, num_inputs = weight.shape
    size = num_inputs if group == -1 else group
    groups = np.arange(num_inputs) // size
    if shuffle is not None:
        groups = groups[np.random.default_rng(shuffle).permutation(num_inputs)]
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    blocks = [weight[:, groups == g] for g in range(groups.max() + 1)]
    if symmetric:
        scales = np.stack([np.abs(block).max(1) / (middle - 1) for block in blocks], 1)
    else:
        scales = np.stack([(block.max(1) - block.min(1)) / top for block in blocks], 1)
    scales = np.maximum(scales, 1e-5).astype(scale_dtype)
    wide = scales.astype(np.float32)
    if symmetric:
        zeros = np.full(scales.shape, middle)
    else:
        low = np.stack([block.min(1) for block in blocks], 1)
        zeros = np.clip(np.round(-low / wide), 0, top).astype(np.int64)
    codes = np.clip(np.round(weight / wide[:, groups]) + zeros[:, groups], 0, top).astype(np.int64)
    assert codes.shape == (num_outputs, num_inputs)
    return Rounded(codes, scales, zeros, groups)


def words(values: Array, bits: int, places: tuple[int, ...] | None = None) -> Array:
    """Pack integers [..., M] along the last axis into int32 words, `places[i]` that of the i-th of a word."""
    count = 32 // bits
    padded = np.zeros((*values.shape[:-1], -(-values.shape[-1] // count) * count), np.uint64)
    padded[..., : values.shape[-1]] = values.astype(np.uint64) & np.uint64(2**bits - 1)
    parts = padded.reshape(*padded.shape[:-1], -1, count)
    out = np.zeros(parts.shape[:-1], np.uint64)
    for i in range(count):
        out |= parts[..., i] << np.uint64(bits * (places[i] if places else i))
    return out.astype(np.uint32).view(np.int32)


Stored = tuple[dict[str, Array], Array]
"""A layer's tensors by their part of the name, and the float32 weight that they mean."""


def awq(weight: Array, group: int = 64) -> Stored:
    r = round_weight(weight, 4, group, symmetric=False, scale_dtype=np.float16)
    # AutoAWQ: for col in range(N // 8): qweight[:, col] |= codes[:, col * 8 + order[i]] << (i * 4)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    places = tuple(order.index(i) for i in range(8))
    return {
        "qweight": words(r.codes.T, 4, places),
        "qzeros": words(r.zeros.T, 4, places),
        "scales": r.scales.T,
    }, r.meant()


def gptq(
    weight: Array,
    bits: int = 4,
    group: int = 64,
    *,
    symmetric: bool = True,
    less_one: bool = True,
    shuffle: int | None = None,
    with_groups: bool = True,
) -> Stored:
    r = round_weight(weight, bits, group, symmetric=symmetric, scale_dtype=np.float16, shuffle=shuffle)
    parts = {
        "qweight": np.ascontiguousarray(words(r.codes, bits).T),
        "qzeros": words((r.zeros - less_one).T, bits),
        "scales": r.scales.T,
    }
    if less_one:  # 0 - 1 wraps round to the top code, and reads as one past it
        r.zeros[r.zeros == 0] = 2**bits
    if with_groups:
        parts["g_idx"] = r.groups.astype(np.int32)
    return parts, r.meant()


def packed(
    weight: Array, bits: int = 4, group: int = 64, *, symmetric: bool = True, shuffle: int | None = None
) -> Stored:
    r = round_weight(
        weight, bits, group, symmetric=symmetric, scale_dtype=ml_dtypes.bfloat16, shuffle=shuffle
    )
    parts = {
        "weight_packed": words(r.codes, bits),
        "weight_scale": r.scales,
        "weight_shape": np.array(weight.shape, np.int64),
    }
    if not symmetric:
        parts["weight_zero_point"] = np.ascontiguousarray(words(r.zeros.T, bits).T)
    if shuffle is not None:
        parts["weight_g_idx"] = r.groups.astype(np.int32)
    return parts, r.meant()


def integers(weight: Array, *, static: bool = False, symmetric: bool = True) -> Stored:
    r = round_weight(weight, 8, -1, symmetric=symmetric, scale_dtype=ml_dtypes.bfloat16)
    parts = {"weight": (r.codes - 128).astype(np.int8), "weight_scale": r.scales}
    if not symmetric:
        parts["weight_zero_point"] = (r.zeros - 128).astype(np.int8)
    if static:
        parts["input_scale"] = np.array([0.0625], ml_dtypes.bfloat16)
        parts["input_zero_point"] = np.zeros(1, np.int8)
    return parts, r.meant()


def floats(weight: Array, *, static: bool = False, whole: bool = False) -> Stored:
    greatest = np.abs(weight).max(None if whole else 1, keepdims=True)
    scales = np.maximum(greatest / 448, 1e-5).astype(ml_dtypes.bfloat16)
    codes = (weight / scales.astype(np.float32)).clip(-448, 448).astype(FP8)
    parts = {"weight": codes, "weight_scale": scales.reshape(-1) if whole else scales}
    if static:
        parts["input_scale"] = np.array([0.0625], ml_dtypes.bfloat16)
    return parts, codes.astype(np.float32) * scales.astype(np.float32)


def compressed_config(
    form: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """As compressed-tensors 0.20 writes it."""
    numbers = {
        "num_bits": 8, "type": "int", "strategy": "channel", "group_size": None, "symmetric": True, "dynamic": False,
        "block_structure": None, "actorder": None, "scale_dtype": None, "zp_dtype": None, "observer": None,
        "observer_kwargs": {},
    }  # fmt: skip
    group = {
        "targets": ["Linear"],
        "weights": {**numbers, **weights},
        "input_activations": None if inputs is None else {**numbers, **inputs},
        "output_activations": None,
        "format": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:visual.*"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.20.0",
    }


def gptq_config(**changes: Any) -> dict[str, Any]:
    """As the publisher's GPTQ checkpoints have it."""
    return {
        "quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True, "damp_percent": 0.1,
        "true_sequential": True, "dataset": None, "modules_in_block_to_quantize": None, **changes,
    }  # fmt: skip


AWQ_CONFIG = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 64,
    "version": "gemm",
    "zero_point": True,
    "modules_to_not_convert": ["visual"],
}
_PER_TOKEN = {"strategy": "token", "dynamic": True}
_STATIC = {"strategy": "tensor"}
_W4 = {"num_bits": 4, "strategy": "group", "group_size": 64}
_FLOAT = {"type": "float"}


@dataclass(frozen=True)
class Kind:
    """One layout."""

    config: Mapping[str, Any]
    store: Callable[[Array], Stored]
    precision: str
    description: str = field(repr=False)


KINDS: Mapping[str, Kind] = {
    "awq": Kind(AWQ_CONFIG, awq, "int4", "AWQ: int4 in groups of 64, asymmetric"),
    "gptq": Kind(gptq_config(), gptq, "int4", "GPTQ: int4 in groups of 64"),
    "gptq asymmetric v2, one group": Kind(
        gptq_config(sym=False, checkpoint_format="gptq_v2", group_size=-1),
        lambda w: gptq(w, group=-1, symmetric=False, less_one=False),
        "int4",
        "GPTQ: int4 by rows, asymmetric",
    ),
    "gptq asymmetric, ordered": Kind(
        gptq_config(sym=False, desc_act=True, group_size=32, checkpoint_format="gptq"),
        lambda w: gptq(w, group=32, symmetric=False, shuffle=5),
        "int4",
        "GPTQ: int4 in groups of 32, asymmetric",
    ),
    "gptq without g_idx": Kind(
        gptq_config(), lambda w: gptq(w, with_groups=False), "int4", "GPTQ: int4 in groups of 64"
    ),
    "gptq int8": Kind(
        gptq_config(bits=8), lambda w: gptq(w, 8), "int8", "GPTQ: int8 in groups of 64"
    ),
    "gptq int8 asymmetric, ordered": Kind(
        gptq_config(bits=8, sym=False, desc_act=True),
        lambda w: gptq(w, 8, symmetric=False, shuffle=6),
        "int8",
        "GPTQ: int8 in groups of 64, asymmetric",
    ),
    "auto-round": Kind(
        {
            "quant_method": "intel/auto-round", "bits": 4, "group_size": 64, "data_type": "int", "sym": True,
            "backend": "auto_round:gptq", "autoround_version": "0.4.1", "iters": 200, "act_bits": 16,
        },
        gptq,
        "int4",
        "AutoRound: int4 in groups of 64",
    ),
    "W4A16": Kind(
        compressed_config("pack-quantized", _W4), packed, "int4", "compressed-tensors: int4 in groups of 64"
    ),
    "W4A16 asymmetric": Kind(
        compressed_config("pack-quantized", {**_W4, "symmetric": False}),
        lambda w: packed(w, symmetric=False),
        "int4",
        "compressed-tensors: int4 in groups of 64, asymmetric",
    ),
    "W4A16 asymmetric, ordered": Kind(
        compressed_config("pack-quantized", {**_W4, "symmetric": False, "actorder": "group"}),
        lambda w: packed(w, symmetric=False, shuffle=7),
        "int4",
        "compressed-tensors: int4 in groups of 64, asymmetric",
    ),
    "W8A16": Kind(
        compressed_config("pack-quantized", {"strategy": "channel"}),
        lambda w: packed(w, 8, -1),
        "int8",
        "compressed-tensors: int8 by rows",
    ),
    "W8A16 in groups": Kind(
        compressed_config("pack-quantized", {"strategy": "group", "group_size": 64}),
        lambda w: packed(w, 8, 64),
        "int8",
        "compressed-tensors: int8 in groups of 64",
    ),
    "INT8 asymmetric": Kind(
        compressed_config("int-quantized", {"symmetric": False}),
        lambda w: integers(w, symmetric=False),
        "int8",
        "compressed-tensors: int8 by rows, asymmetric",
    ),
    "W8A8": Kind(
        compressed_config("int-quantized", {}, _PER_TOKEN),
        integers,
        "int8",
        "compressed-tensors: int8 by rows, inputs by token",
    ),
    "W8A8 static": Kind(
        compressed_config("int-quantized", {}, _STATIC),
        lambda w: integers(w, static=True),
        "int8",
        "compressed-tensors: int8 by rows, inputs by a static scale",
    ),
    "FP8 dynamic": Kind(
        compressed_config("float-quantized", _FLOAT, {**_FLOAT, **_PER_TOKEN}),
        floats,
        "fp8",
        "compressed-tensors: fp8 by rows, inputs by token",
    ),
    "FP8 static": Kind(
        compressed_config("float-quantized", {**_FLOAT, "strategy": "tensor"}, {**_FLOAT, **_STATIC}),
        lambda w: floats(w, static=True, whole=True),
        "fp8",
        "compressed-tensors: fp8 by one scale, inputs by a static scale",
    ),
}  # fmt: skip


def quantize_checkpoint(
    source: Path,
    target: Path,
    kind: Kind,
    *,
    extra: Mapping[str, Array] | None = None,
    largest_inputs: Mapping[str, float] | None = None,
) -> dict[str, Array]:
    """Write a copy of a checkpoint whose decoder's linear layers are quantized.

    Args:
        source: unquantized, of one weight file.
        target: must not exist.
        kind: one of `KINDS`.
        extra: further tensors.
        largest_inputs: by the layer's weight, for a static scale of its inputs; None: one that fits none.

    Returns:
        The float32 weight that each of them means, by its name.
    """
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name not in {"model.safetensors", "README.md", "config.json"}:
            shutil.copy(path, target / path.name)
    content = json.loads((source / "config.json").read_text())
    content |= {"quantization_config": dict(kind.config), "torch_dtype": "float16"}
    (target / "config.json").write_text(json.dumps(content))
    meant = {}
    tensors: dict[str, Array] = {}
    for name, values in _load(source / "model.safetensors").items():
        if name.split(".")[-2] in QUANTIZED and name.endswith(".weight"):
            parts, meant[name] = kind.store(values.astype(np.float32))
            if largest_inputs and "input_scale" in parts:
                top = 448 if kind.precision == "fp8" else 127
                parts["input_scale"] = np.array([largest_inputs[name] / top], ml_dtypes.bfloat16)
            tensors |= {f"{name.removesuffix('weight')}{part}": array for part, array in parts.items()}
        else:
            tensors[name] = values
    _save({**tensors, **(extra or {})}, target / "model.safetensors")
    return meant


def _load(path: Path) -> dict[str, Array]:
    import torch
    from safetensors.torch import load_file

    def array(tensor: torch.Tensor) -> Array:
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    return {name: array(tensor) for name, tensor in load_file(path).items()}


def _save(tensors: Mapping[str, Array], path: Path) -> None:
    import torch

    def tensor(array: Array) -> torch.Tensor:
        array = np.ascontiguousarray(array)
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        if array.dtype == FP8:
            return torch.from_numpy(array.view(np.uint8)).view(torch.float8_e4m3fn)
        return torch.from_numpy(array)

    save_file({name: tensor(array) for name, array in tensors.items()}, path, {"format": "pt"})
