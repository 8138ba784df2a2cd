"""Whether an op runs its GPU kernel or its reference."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


def runs_kernel(*inputs: Tensor) -> bool:
    """The kernel computes values only: on a GPU that Triton serves, and where nobody asks for gradients.

    Triton comes with PyTorch's CUDA builds for Linux and compiles for compute capability 8.0 and newer.
    `qv-export doctor --plugins` says what is missing.
    """
    if not all(x.is_cuda for x in inputs) or not _has_triton():
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return False
    return _is_served(inputs[0].device)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _is_served(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)
