"""Weights in `pytorch_model.bin`, converted to safetensors without running what a pickle may contain.

`torch.load(weights_only=True)` rebuilds tensors and plain containers and refuses everything else.
"""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import UserError
from export.files.json_object import read_json_object
from export.weights.writer import NewTensor, write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

SINGLE_FILE = "pytorch_model.bin"
INDEX_FILE = "pytorch_model.bin.index.json"


def pickled_files(directory: Path) -> list[Path]:
    """The pickled weight files of a checkpoint; none where there is neither one file nor an index.

    Raises:
        UserError: an index that names files outside the directory, or files that are missing.
    """
    if not (directory / INDEX_FILE).exists():
        return [directory / SINGLE_FILE] if (directory / SINGLE_FILE).exists() else []
    weight_map = read_json_object(directory / INDEX_FILE).get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    bad = [name for name in names if Path(name).name != name or not (directory / name).is_file()]
    if bad or not names:
        raise UserError(
            f"{directory / INDEX_FILE}: expected weight_map to name files of its directory, "
            f"found {', '.join(bad) or 'none'}."
        )
    return [directory / name for name in names]


def convert_pickled(path: Path, target: Path) -> None:
    """Write a pickled file's floating-point tensors as safetensors, under their own names and in their own dtypes.

    Integer tensors, such as old position buffers, are no weights of this family and are left out.

    Raises:
        UserError: the file holds more than tensors, is broken, or is not a mapping of names to tensors.
    """
    import torch  # noqa: PLC0415 - seconds: most checkpoints have no pickled weights

    tensors = _load(path)
    new = [
        NewTensor(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in tensors.items()
    ]
    write_safetensors(
        target, new, lambda name: tensors[name].contiguous().view(torch.uint8).numpy().tobytes()
    )


def _load(path: Path) -> "Mapping[str, Tensor]":
    import torch  # noqa: PLC0415

    try:
        content = _load_weights_only(path)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, and reading it would run code that it brings: "
            f"{_first_line(error)} Ask its author for safetensors."
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a readable PyTorch file: {_first_line(error)}") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    is_mapping = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not is_mapping:
        raise UserError(f"{path} must map names to tensors, found {type(content).__name__}.")
    found = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    return {
        name: tensor if tensor.dtype in (torch.float32, torch.float16, torch.bfloat16) else tensor.float()
        for name, tensor in found.items()
        if tensor.is_floating_point()
    }


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _load_weights_only(path: Path) -> Any:
    import torch  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols that PyTorch does not write
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # written before PyTorch 1.6
