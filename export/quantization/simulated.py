"""The rounding of inputs that quantized products do, in the PyTorch reference."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from export.quantization.linear import Precision

_LARGEST = {"int8": 127.0, "fp8": 448.0}
_SMALLEST_MAXIMUM = 1e-6


@dataclass(frozen=True)
class Rounding:
    """How a product's input is rounded: see `export.quantization.linear.QuantizedLinear.activations`."""

    precision: Precision
    activations: float | Literal["per_token"]


def round_inputs(model: nn.Module, roundings: Mapping[str, Rounding]) -> None:
    """Let products round their inputs in the reference as they do in the graph: part of what the model means.

    Args:
        model: its modules are named as the weights are.
        roundings: by the published name of the weight.
    """
    for name, rounding in roundings.items():
        scale = rounding.activations if isinstance(rounding.activations, float) else None
        hook = _rounding(rounding.precision, scale)
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(hook)


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


def _rounding(precision: str, scale: float | None) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Tensor]]:
    def rounded(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        (x,) = inputs
        return (rounded_to(x, precision, scale),)

    return rounded


def rounded_to(x: Tensor, precision: str, scale: float | None) -> Tensor:
    """A product's input as it becomes.

    Args:
        x: [..., K], any float dtype, which stays.
        precision: "int8" or "fp8".
        scale: of every token; None: each token's largest value becomes the largest code.
    """
    largest = _LARGEST[precision]
    step: Tensor | float
    if scale is not None:
        step = scale
    else:
        step = x.abs().amax(-1, keepdim=True).clamp(min=_SMALLEST_MAXIMUM) / largest
    normal = x / step
    if precision == "fp8":
        codes = normal.clamp(-largest, largest).to(torch.float8_e4m3fn).to(x.dtype)
    else:
        codes = normal.round().clamp(-128, 127)
    rounded: Tensor = codes * step
    return rounded


def rounded_in_blocks(x: Tensor, block: int) -> Tensor:
    """As a kernel rounds the input of a 4-bit product: 8-bit integers, a scale for each block of each token.

    Args:
        x: [..., K], any float dtype, which stays.
        block: divides K.
    """
    blocks = x.reshape(*x.shape[:-1], -1, block)
    step = blocks.abs().amax(-1, keepdim=True) / _LARGEST["int8"]
    codes = (blocks / step.clamp(min=torch.finfo(x.dtype).tiny)).round()
    rounded: Tensor = (codes * step).flatten(-2)
    return rounded
