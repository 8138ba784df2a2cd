"""`QvAllReduce` and `QvAllGather` as torch ops: a node in the graph being traced, or the reference."""

from dataclasses import replace

import torch
from torch import Tensor

from plugins.collective import reference
from plugins.onnx.tracing import symbolic_call
from plugins.registry import ALL_GATHER, ALL_REDUCE


def all_reduce(x: Tensor, num_ranks: int) -> Tensor:
    """See `plugins.collective.reference.all_reduce_reference`; of one rank, `x` itself."""
    if num_ranks == 1:
        return x
    if torch.compiler.is_exporting():
        signature = replace(ALL_REDUCE, attributes={"num_ranks": num_ranks})
        return symbolic_call(signature, [x], like=[x])[0]
    return reference.all_reduce_reference(x)


def all_gather(x: Tensor, num_ranks: int) -> Tensor:
    """See `plugins.collective.reference.all_gather_reference`; of one rank, `x` itself."""
    if num_ranks == 1:
        return x
    if torch.compiler.is_exporting():
        signature = replace(ALL_GATHER, attributes={"num_ranks": num_ranks})
        return symbolic_call(signature, [x], like=[x.new_empty(num_ranks * x.shape[0], *x.shape[1:])])[0]
    return reference.all_gather_reference(x)


def gather_last(x: Tensor, num_ranks: int) -> Tensor:
    """[..., V / ranks] on each rank to [..., V] on all, by an `all_gather`, which joins along the first axis alone."""
    if num_ranks == 1:
        return x
    return all_gather(x.movedim(-1, 0), num_ranks).movedim(0, -1)
