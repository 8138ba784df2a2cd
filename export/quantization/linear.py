"""One quantized linear layer's weight: codes, scales, zero points, order of columns, and the numbers that they mean."""

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

Precision: TypeAlias = Literal["int4", "int8", "fp8"]
Array: TypeAlias = npt.NDArray[Any]

FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
LARGEST_BLOCK = 128
"""Of 4-bit codes in a graph: TensorRT expands a weight whose scales are for whole outputs."""
CODE_RANGE: dict[Precision, tuple[int, int]] = {"int4": (-8, 7), "int8": (-128, 127), "fp8": (-448, 448)}
"""The least and the greatest value of a code."""


@dataclass(frozen=True, eq=False)
class QuantizedLinear:
    """A weight w [N, K] (N outputs, K inputs) of a product y = x w^T, kept as small numbers.

    w[n, k] = (codes[n, k] - zeros[n, k // block]) * scales[n, k // block], and its column k multiplies x[order[k]].
    G blocks of K / G columns have a scale each; G = 1: one for the whole row. Two columns may multiply one input: then
    K is that of the columns, and the weight of that input is the sum of both.
    """

    precision: Precision
    codes: Array
    """[N, K]: int8 within `CODE_RANGE`, or float8_e4m3fn for "fp8"."""
    scales: Array
    """[N, G] float32: exactly the stored ones, widened."""
    zeros: Array | None = None
    """[N, G] int16; None: all are 0 (symmetric)."""
    order: Array | None = None
    """[K] int32, a permutation of the inputs, or several one after the other; None: as they stand."""
    activations: Literal["per_token"] | float | None = None
    """How x is rounded to the codes' kind before the product: not at all (None), each token by a scale of its own, or
    by this scale."""

    def __post_init__(self) -> None:
        num_outputs, num_inputs = self.codes.shape
        blocks = self.scales.shape
        assert self.codes.dtype == (FP8 if self.precision == "fp8" else np.int8), self.codes.dtype
        assert self.scales.dtype == np.float32, self.scales.dtype
        assert len(blocks) == 2, blocks
        assert blocks[0] == num_outputs, (self.codes.shape, blocks)
        assert blocks[1] > 0, blocks
        assert num_inputs % blocks[1] == 0, (self.codes.shape, blocks)
        if self.zeros is not None:
            assert self.zeros.dtype == np.int16, self.zeros.dtype
            assert self.zeros.shape == blocks, (self.zeros.shape, blocks)
        if self.order is not None:
            assert self.order.dtype == np.int32, self.order.dtype
            assert self.order.shape == (num_inputs,), (self.order.shape, num_inputs)

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K]."""
        num_outputs, num_inputs = self.codes.shape
        return num_outputs, num_inputs

    @property
    def num_blocks(self) -> int:
        """G."""
        return int(self.scales.shape[1])

    @property
    def block(self) -> int:
        """How many inputs share a scale."""
        return self.shape[1] // self.num_blocks

    def in_small_blocks(self) -> "QuantizedLinear":
        """The same weight in several small blocks: each part of a divided one has its scale and zero.

        Their size is one that ONNX Runtime multiplies by as it is, a power of two from 16, where one divides the block.
        """
        _, num_inputs = self.shape
        largest = min(LARGEST_BLOCK, max(1, num_inputs // 2))
        sizes = (128, 64, 32, 16) if self.block % 16 == 0 else range(LARGEST_BLOCK, 0, -1)
        block = next((size for size in sizes if size <= largest and self.block % size == 0), self.block)
        if block == self.block:
            return self
        times = num_inputs // block // self.num_blocks
        zeros = None if self.zeros is None else np.repeat(self.zeros, times, axis=1)
        return replace(self, scales=np.repeat(self.scales, times, axis=1), zeros=zeros)

    def in_planes(self) -> "QuantizedLinear":
        """The same 8-bit weight in blocks as two planes of 4 bits: 16 times the high halves, and the low ones.

        TensorRT expands 8-bit codes in blocks to 16 bits at every call, and multiplies by those of 4 bits as they are.
        A code q is 16 (q >> 4) + (q & 15), and a low half of 0 to 15 is a code of -8 to 7 with a zero point of -8:
        nothing is rounded anew.
        """
        if self.precision != "int8" or self.num_blocks == 1:
            return self
        num_inputs = self.shape[1]
        zeros = np.zeros(self.scales.shape, np.int16) if self.zeros is None else self.zeros
        order = np.arange(num_inputs, dtype=np.int32) if self.order is None else self.order
        return QuantizedLinear(
            "int4",
            np.concatenate([self.codes >> 4, (self.codes & 15) - np.int8(8)], axis=1),
            np.concatenate([self.scales * 16, self.scales], axis=1),
            np.concatenate([np.zeros_like(zeros), zeros - np.int16(8)], axis=1),
            np.concatenate([order, order]),
        )

    def dequantized(self) -> Array:
        """The weight as float32 [N, inputs], its columns in x's order: a value is one subtraction and one product."""
        num_outputs, num_inputs = self.shape
        values = self.codes.astype(np.float32).reshape(num_outputs, self.num_blocks, self.block)
        if self.zeros is not None:
            values -= self.zeros.astype(np.float32)[..., None]
        values *= self.scales[..., None]
        weight: Array = values.reshape(num_outputs, num_inputs)
        if self.order is None:
            return weight
        width = int(self.order.max()) + 1
        ordered = np.zeros((num_outputs, width), np.float32)
        for start in range(0, num_inputs, width):
            inputs = self.order[start : start + width]
            ordered[:, inputs] += weight[:, start : start + width]
        return ordered
