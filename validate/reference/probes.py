"""What the reference computes on the way: at the borders of its modules, and of the functions between them."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from export.models.qwen2_vl import decoder, vision
from export.models.qwen2_vl.model import KvCache, Qwen2VL
from plugins.quantized_cache_attention.reference import dequantize
from plugins.rotary.reference import rotary_reference

Captured = dict[str, npt.NDArray[Any]]
"""By `Probe.reference`: module path and `in` or `out`, `BLOCK:rotated_q`, or `present_key.LAYER`."""


def probed_modules(references: Collection[str]) -> list[str]:
    """Names of the modules behind `Probe.reference`s; what is no module, such as a rotation, is derived from those."""
    return sorted({reference.partition(":")[0] for reference in references})


@contextmanager
def capturing(model: Qwen2VL, modules: Sequence[str]) -> Iterator[Captured]:
    """Keep what modules take and give while the context lasts; a second run replaces the first."""
    probes: Captured = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
            first = outputs[0] if isinstance(outputs, tuple) else outputs
            probes[f"{name}:in"], probes[f"{name}:out"] = array_of(inputs[0]), array_of(first)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in modules]
    try:
        yield probes
    finally:
        for handle in handles:
            handle.remove()


def add_patch_rotations(
    probes: Captured, model: Qwen2VL, positions: npt.NDArray[np.int32], dtype: torch.dtype
) -> None:
    """The rotation is a function between modules: compute it again from the projections that it took."""
    config = model.config.vision
    for name in [name.removesuffix(":out") for name in probes if name.endswith(".attn.qkv:out")]:
        qkv = torch.from_numpy(probes[f"{name}:out"])  # [P, 3 * E]
        q, k, _ = qkv.to(dtype).view(len(qkv), 3, config.num_heads, -1).unbind(1)
        rotated = rotary_reference(q, k, torch.from_numpy(positions), *vision.patch_rotary_tables(config))
        _keep_rotated(probes, name.removesuffix(".attn.qkv"), *rotated)


def add_token_rotations(
    probes: Captured, model: Qwen2VL, position_ids: npt.NDArray[np.int32], dtype: torch.dtype
) -> None:
    """The same for the decoder. Args: position_ids: [3, T] of the probed tokens."""
    config = model.config.decoder
    for name in [name.removesuffix(".q_proj:out") for name in probes if name.endswith(".q_proj:out")]:
        q, k = (
            torch.from_numpy(probes[f"{name}.{x}_proj:out"])
            .to(dtype)
            .view(len(position_ids[0]), -1, config.head_dim)
            for x in "qk"
        )
        rotated = rotary_reference(
            decoder.tempered(q, config), k, torch.from_numpy(position_ids), *decoder.mrope_tables(config)
        )
        _keep_rotated(probes, name.removesuffix(".self_attn"), *rotated)


def add_caches(probes: Captured, present: KvCache) -> None:
    """Keys and values of each layer as `[tokens, K * D]`, of the first row; of codes what they mean."""
    for kind, parts, scales in (
        ("key", present.keys, present.key_scales),
        ("value", present.values, present.value_scales),
    ):
        for layer, part in enumerate(parts):  # [1, K, L, D]
            meant = dequantize(part, scales[layer]) if scales else part
            probes[f"present_{kind}.{layer}"] = array_of(meant[0].transpose(0, 1).flatten(1))


def array_of(tensor: Tensor) -> npt.NDArray[Any]:
    widest = tensor.detach().cpu()
    return (widest if widest.dtype == torch.float64 else widest.float()).numpy().copy()


def _keep_rotated(probes: Captured, block: str, q: Tensor, k: Tensor) -> None:
    probes[f"{block}:rotated_q"], probes[f"{block}:rotated_k"] = (
        array_of(q.flatten(1)),
        array_of(k.flatten(1)),
    )
