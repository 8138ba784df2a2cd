from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from export.weights import compare
from export.weights.safetensors_file import read_safetensors_header


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "BLOCK_VALUES", 7)


def are_equal(directory: Path, first: np.ndarray, second: np.ndarray) -> bool:
    save_file({"pad": np.ones(3, np.float32), "x": first}, directory / "first.safetensors")
    save_file({"y": second}, directory / "second.safetensors")
    x = {tensor.name: tensor for tensor in read_safetensors_header(directory / "first.safetensors")}["x"]
    (y,) = read_safetensors_header(directory / "second.safetensors")
    return compare.have_equal_values(x, y)


@pytest.mark.parametrize("size", [(0,), (6,), (7,), (3, 8)])
def test_equal_values_are_equal_in_any_dtype(tmp_path: Path, size):
    values = np.random.default_rng(0).integers(-9, 9, size).astype(np.float16)
    assert are_equal(tmp_path, values, values)
    assert are_equal(tmp_path, values, values.astype(np.float32))


@pytest.mark.parametrize("place", range(24))
def test_one_value_that_differs_is_seen_in_any_block(tmp_path: Path, place):
    values = np.arange(24, dtype=np.float32)
    other = values.copy()
    other[place] = np.nextafter(other[place], np.float32(100))
    assert not are_equal(tmp_path, values, other)


def test_values_are_compared_as_numbers(tmp_path: Path):
    zero, nan = np.zeros(9, np.float32), np.full(9, np.nan, np.float32)
    assert are_equal(tmp_path, zero, -zero)
    assert not are_equal(tmp_path, nan, nan)
    assert not are_equal(tmp_path, zero.reshape(3, 3), zero)
