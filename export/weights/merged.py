"""A checkpoint with an adapter merged into it: new bytes for the weights that it changes, all others by reference."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from export.errors import UserError
from export.weights.adapter import Adapter
from export.weights.names import MERGED_FILE
from export.weights.safetensors_file import StoredTensor
from export.weights.writer import NewTensor, write_safetensors

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def write_merged(
    base: Mapping[str, StoredTensor], adapter: Adapter, directory: Path, *, is_tied: bool
) -> Path:
    """Write the changed weights, under their published names and in the base's dtypes.

    As PEFT's `merge_and_unload()` on a CPU: B A in float32, scaled, added to the weight, rounded once.

    Args:
        base: the model's stored weights by published name.
        adapter: what it changes.
        directory: receives `MERGED_FILE`.
        is_tied: whether the head is the token embedding.

    Raises:
        UserError: the adapter is for another model; all that does not fit at once.
    """
    problems = [*_fit_problems(base, adapter), *(_tie_problems(adapter) if is_tied else [])]
    if problems:
        raise UserError(
            f"{adapter.directory} does not fit this checkpoint:\n- "
            + "\n- ".join(problems)
            + "\nName the adapter's own base model, or merge with PEFT."
        )

    def bytes_of(name: str) -> bytes:
        dtype = getattr(torch, _dtype_of(name, base))
        merged = _read(adapter.replaced.get(name) or base[name]).to(dtype)
        if change := adapter.low_rank.get(name):
            merged += _read(change.b).float() @ _read(change.a).float() * change.scaling
        return _bytes(merged)

    names = sorted({*adapter.low_rank, *adapter.replaced})
    shapes = {name: (adapter.replaced.get(name) or base[name]).shape for name in names}
    path = directory / MERGED_FILE
    write_safetensors(
        path, [NewTensor(name, _dtype_of(name, base), shapes[name]) for name in names], bytes_of
    )
    return path


def _dtype_of(name: str, base: Mapping[str, StoredTensor]) -> str:
    """The base weight's; a tied model has no head of its own."""
    return base[name if name in base else _EMBEDDING].dtype


def _fit_problems(base: Mapping[str, StoredTensor], adapter: Adapter) -> list[str]:
    problems = []
    for name in sorted({*adapter.low_rank, *adapter.replaced}):
        if name not in base and name != _HEAD:
            problems.append(f"{name}: changed by the adapter, not part of the model")
            continue
        expected = base[name if name in base else _EMBEDDING].shape
        stored = adapter.replaced.get(name)
        # How many rows a vocabulary has is the adapter's to say; all else is the model's.
        first = 1 if name in {_EMBEDDING, _HEAD} else 0
        if stored and stored.shape[first:] != expected[first:]:
            problems.append(f"{name}: shape {list(expected)}, the adapter's {list(stored.shape)}")
        expected = stored.shape if stored else expected
        change = adapter.low_rank.get(name)
        if change and change.shape != expected:
            problems.append(f"{name}: shape {list(expected)}, the adapter's {list(change.shape)}")
    return problems


def _tie_problems(adapter: Adapter) -> list[str]:
    """Where one table embeds and projects, PEFT's own answer depends on the order in which it was tied and merged."""
    problems = [
        f"{name}: changed by LoRA, although the model's head is its token embedding"
        for name in (_EMBEDDING, _HEAD)
        if name in adapter.low_rank
    ]
    if _EMBEDDING in adapter.replaced and _HEAD not in adapter.replaced:
        problems.append(
            f"{_EMBEDDING}: replaced, although the model's head is its token embedding and is not"
        )
    return problems


def _read(stored: StoredTensor) -> Tensor:
    with safe_open(stored.path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(stored.name)
        return tensor


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
