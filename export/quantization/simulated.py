"""The rounding of inputs that quantized products do, in the PyTorch reference."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from export.quantization.linear import Precision
from plugins.rounding import LARGEST_CODE, SMALLEST_MAXIMUM, nearest_codes


@dataclass(frozen=True)
class Rounding:
    """How a product's input is rounded: see `export.quantization.linear.QuantizedLinear.activations`."""

    precision: Precision
    activations: float | Literal["per_token"]


class InputRounding:
    """Rounds a module's input before it runs: a forward pre-hook."""

    def __init__(self, rounding: Rounding) -> None:
        self._rounding = rounding
        self.turns_a_tie = False
        """Of each token, round the value that lies nearest between two codes to the other one: what any engine may do
        that computes in another order, and what few computations show."""

    def __call__(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        scale = self._rounding.activations
        given = scale if isinstance(scale, float) else None
        return (rounded_to(inputs[0], self._rounding.precision, given, turns_a_tie=self.turns_a_tie),)


def round_inputs(model: nn.Module, roundings: Mapping[str, Rounding]) -> None:
    """Let products round their inputs in the reference as they do in the graph: part of what the model means.

    Args:
        model: its modules are named as the weights are.
        roundings: by the published name of the weight.
    """
    for name, rounding in roundings.items():
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(InputRounding(rounding))


@contextmanager
def turning_ties(model: nn.Module) -> Iterator[None]:
    """Let every rounding of an input, and of what is cached, turn a tie of each token meanwhile."""
    roundings: list[Any] = [
        hook
        for module in model.modules()
        for hook in module._forward_pre_hooks.values()  # noqa: SLF001 - torch names no way to ask for them
        if isinstance(hook, InputRounding)
    ]
    roundings += [module for module in model.modules() if hasattr(module, "turns_a_tie")]
    for rounding in roundings:
        rounding.turns_a_tie = True
    try:
        yield
    finally:
        for rounding in roundings:
            rounding.turns_a_tie = False


@contextmanager
def rounding_inputs_of_few_bits(model: nn.Module, blocks: Mapping[str, int]) -> Iterator[None]:
    """Let products round their inputs in blocks meanwhile, as kernels do whose weights alone are in few bits.

    Args:
        model: its modules are named as the weights are.
        blocks: inputs that share a scale, by the published name of the weight.
    """
    handles = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(_block_rounding(block))
        for name, block in blocks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _block_rounding(block: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Tensor]]:
    return lambda _module, inputs: (rounded_in_blocks(inputs[0], block),)


def rounded_to(x: Tensor, precision: Precision, scale: float | None, *, turns_a_tie: bool = False) -> Tensor:
    """A product's input as it becomes.

    Args:
        x: [..., K], any float dtype, which stays.
        precision: "int8" or "fp8".
        scale: of every token; None: each token's largest value becomes the largest code.
        turns_a_tie: see `InputRounding`.
    """
    assert precision != "int4", "inputs of products are never rounded to 4 bits"
    step: Tensor | float
    if scale is not None:
        step = scale
    else:
        step = x.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_MAXIMUM) / LARGEST_CODE[precision]
    return nearest_codes(x / step, precision, turns_a_tie=turns_a_tie) * step


def rounded_in_blocks(x: Tensor, block: int) -> Tensor:
    """As a kernel rounds the input of a 4-bit product: 8-bit integers, a scale for each block of each token.

    Args:
        x: [..., K], any float dtype, which stays.
        block: divides K.
    """
    blocks = x.reshape(*x.shape[:-1], -1, block)
    step = blocks.abs().amax(-1, keepdim=True) / LARGEST_CODE["int8"]
    codes = (blocks / step.clamp(min=torch.finfo(x.dtype).tiny)).round()
    rounded: Tensor = (codes * step).flatten(-2)
    return rounded
