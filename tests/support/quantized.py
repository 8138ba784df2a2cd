"""Random quantized linear layers."""

import numpy as np

from export.quantization.linear import FP8, Precision, QuantizedLinear


def random_linear(
    precision: Precision,
    shape: tuple[int, int] = (24, 64),
    num_blocks: int = 4,
    *,
    asymmetric: bool = False,
    ordered: bool = True,
    activations=None,
    seed: int = 0,
) -> QuantizedLinear:
    """One whose every code occurs, of scales that float16 holds."""
    random = np.random.default_rng(seed)
    low, high = {"int4": (-8, 8), "int8": (-128, 128), "fp8": (-448, 449)}[precision]
    codes = random.integers(low, high, shape)
    zeros = random.integers(low, high + 1, (shape[0], num_blocks)).astype(np.int16)
    return QuantizedLinear(
        precision,
        codes.astype(np.float32).astype(FP8) if precision == "fp8" else codes.astype(np.int8),
        (random.random((shape[0], num_blocks)) + 0.5).astype(np.float16).astype(np.float32),
        zeros if asymmetric else None,
        None if ordered else random.permutation(shape[1]).astype(np.int32),
        activations,
    )
