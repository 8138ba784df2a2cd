import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from plugins.rotary.reference import (
    mrope_axes,
    mrope_frequencies,
    patch_axes,
    patch_frequencies,
    rotary_reference,
)

SECTION = (3, 2, 3)
FREQUENCIES, AXES = mrope_frequencies(16, 1e6), mrope_axes(SECTION)


def complex_rotation(x, positions, frequencies, axis_of):
    """The same in float64 with complex numbers, written apart: channel i + 1j * channel i + D/2, times e^(1j angle)."""
    half = x.shape[-1] // 2
    angles = positions[axis_of].T.astype(np.float64) * frequencies.astype(np.float64)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None, :]
    return np.concatenate([turned.real, turned.imag], axis=-1)


def test_equals_a_complex_rotation_in_float64():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(9, 4, 16, generator=generator), torch.randn(9, 2, 16, generator=generator)
    positions = torch.randint(0, 50, (3, 9), generator=generator, dtype=torch.int32)
    for result, x in zip(rotary_reference(q, k, positions, FREQUENCIES, AXES), (q, k), strict=True):
        truth = complex_rotation(x.numpy(), positions.numpy(), FREQUENCIES.numpy(), AXES.numpy())
        np.testing.assert_allclose(result.numpy(), truth, atol=1e-5)


def test_with_equal_axes_mrope_is_plain_rotary():
    q = torch.randn(5, 2, 16, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(5, dtype=torch.int32).expand(3, 5)
    one_axis = torch.zeros(8, dtype=torch.int32)
    by_three, _ = rotary_reference(q, q, positions, FREQUENCIES, AXES)
    by_one, _ = rotary_reference(q, q, positions[:1], FREQUENCIES, one_axis)
    assert torch.equal(by_three, by_one)


def test_each_section_follows_its_own_axis():
    x = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(2))
    start = 0
    for axis, length in enumerate(SECTION):
        positions = torch.zeros(3, 1, dtype=torch.int32)
        positions[axis] = 7
        moved = (rotary_reference(x, x, positions, FREQUENCIES, AXES)[0] != x).flatten()
        expected = torch.zeros(8, dtype=torch.bool)
        expected[start : start + length] = True
        assert torch.equal(moved, expected.repeat(2))
        start += length


@given(shift=st.integers(0, 1000), seed=st.integers(0, 2**16))
def test_scores_depend_on_distances_only(shift, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(4, 1, 16, generator=generator), torch.randn(4, 1, 16, generator=generator)
    positions = torch.randint(0, 100, (3, 4), generator=generator, dtype=torch.int32)

    def scores(offset: int) -> torch.Tensor:
        rotated_q, rotated_k = rotary_reference(q, k, positions + offset, FREQUENCIES, AXES)
        return rotated_q[:, 0] @ rotated_k[:, 0].T

    # Angles near 1000 are rounded to 6e-5 in float32.
    torch.testing.assert_close(scores(shift), scores(0), atol=5e-3, rtol=0)


def test_vision_axes_split_a_head_into_rows_and_columns():
    assert patch_axes(80).tolist() == [0] * 20 + [1] * 20
    assert torch.equal(patch_frequencies(80)[:20], patch_frequencies(80)[20:])


def test_low_precision_is_rounded_once_at_the_end():
    q = torch.randn(6, 2, 16, generator=torch.Generator().manual_seed(3)).bfloat16()
    positions = torch.full((3, 6), 9_999, dtype=torch.int32)
    low, _ = rotary_reference(q, q, positions, FREQUENCIES, AXES)
    exact, _ = rotary_reference(q.float(), q.float(), positions, FREQUENCIES, AXES)
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, exact.bfloat16())
