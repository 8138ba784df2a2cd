"""Rotary embedding over several position axes: the definition of `QvRotary`."""

import math

import torch
from torch import Tensor


def rotary_reference(
    q: Tensor, k: Tensor, positions: Tensor, frequencies: Tensor, axis_of: Tensor
) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys by angles whose position axis is chosen per frequency.

    Angle i of token t is `positions[axis_of[i], t] * frequencies[i]`. With three axes (temporal, height, width) this
    is M-RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1); with two (row, column) it is the vision encoder's 2-D RoPE.
    Angles, sines and products are float32 whatever the dtype of `q`.

    Args:
        q: [T, H, D], any float dtype.
        k: [T, K, D], dtype of `q`.
        positions: [A, T] int32, one row for each axis.
        frequencies: [D/2] float32, radians per position.
        axis_of: [D/2] int32, the row of `positions` that frequency i follows.

    Returns:
        `q` and `k` rotated, same shapes and dtypes. Channel i pairs with channel i + D/2 ("rotate half").
    """
    angles = positions[axis_of.long()].T.float() * frequencies  # [T, D/2]
    cos, sin = angles.cos()[:, None, :], angles.sin()[:, None, :]  # [T, 1, D/2]

    def rotate(x: Tensor) -> Tensor:
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)

    return rotate(q), rotate(k)


def mrope_axes(mrope_section: tuple[int, int, int]) -> Tensor:
    """The decoder's `axis_of`: the first frequencies follow time, the next height, the last width.

    Example: `mrope_section` (16, 24, 24) gives sixteen 0s, twenty-four 1s, twenty-four 2s: [64] int32.
    """
    return torch.repeat_interleave(torch.arange(3, dtype=torch.int32), torch.tensor(mrope_section))


def patch_axes(head_dim: int) -> Tensor:
    """The vision encoder's `axis_of`: half of the frequencies follow rows, half columns; [D/2] int32."""
    return torch.arange(2, dtype=torch.int32).repeat_interleave(head_dim // 4)


def mrope_frequencies(head_dim: int, theta: float) -> Tensor:
    """theta^(-2i / D) for i in 0 .. D/2-1: [D/2] float32."""
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def yarn_frequencies(
    head_dim: int,
    theta: float,
    *,
    factor: float,
    original_max_position_embeddings: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> Tensor:
    """M-RoPE's frequencies stretched by YaRN (arXiv 2309.00071, section 3.2): [D/2] float32.

    Frequencies that turn at least `beta_fast` times within the original context stay, those that turn at most
    `beta_slow` times are divided by `factor`, and a straight ramp over the index blends between. Bit for bit what
    Transformers 5.23 computes (`_compute_yarn_parameters`).
    """

    def index_of(num_turns: float) -> float:
        turns_of_first = original_max_position_embeddings / (2 * math.pi)
        return head_dim * math.log(turns_of_first / num_turns) / (2 * math.log(theta))

    low, high = index_of(beta_fast), index_of(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a division by zero
    ramp = torch.clamp((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    wavelengths = theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    kept = 1 - ramp
    return 1.0 / (factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept


def patch_frequencies(head_dim: int, theta: float = 10_000.0) -> Tensor:
    """One geometric series over D/2 channels, used by rows and columns alike: [D/2] float32.

    theta is not in `config.json`: 10000 is fixed in the published model's code.
    """
    return mrope_frequencies(head_dim // 2, theta).repeat(2)
