"""What the ranks of a group sum and gather: the definition of `QvAllReduce` and `QvAllGather`."""

import torch
import torch.distributed as dist
from torch import Tensor


def all_reduce_reference(x: Tensor) -> Tensor:
    """The sum over all ranks of the default process group, the same on each.

    Args:
        x: of the same shape and dtype on every rank.
    """
    reduced = x.clone()
    dist.all_reduce(reduced)
    return reduced


def all_gather_reference(x: Tensor) -> Tensor:
    """The ranks' tensors one after another along the first axis, in the order of ranks.

    Args:
        x: [R, ...], of the same shape and dtype on every rank.

    Returns:
        [R * ranks, ...]
    """
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)
