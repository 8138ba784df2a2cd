"""Embeddings on an engine's device are bounded there, spill to the host oldest first, and go from there."""

import numpy as np
import numpy.typing as npt
import pytest

from engines.runtime.vision.cache import EmbeddingCache

ROW_BYTES = 8  # of two values in a dtype of four bytes on the device, too


class Rows:
    """Rows that are not on the host."""

    def __init__(self, number: int, length: int) -> None:
        self.number, self.shape = number, (length, 2)
        self.nbytes = ROW_BYTES * length

    def __len__(self) -> int:
        return self.shape[0]

    def to_host(self) -> npt.NDArray[np.float32]:
        return np.full(self.shape, self.number, np.float32)


def kept(cache: EmbeddingCache, number: int) -> str:
    found = cache.get(bytes([number]))
    if found is None:
        return "gone"
    if isinstance(found, np.ndarray):
        assert (found == number).all()
        return "host"
    return "device"


def filled(cache: EmbeddingCache, *lengths: int) -> EmbeddingCache:
    for number, length in enumerate(lengths):
        cache.put(bytes([number]), Rows(number, length))  # type: ignore[arg-type]
    return cache


@pytest.mark.parametrize(
    ("device_rows", "host_rows", "lengths", "where"),
    [
        (10, 10, (5, 5), ["device", "device"]),
        (10, 10, (5, 5, 5), ["host", "device", "device"]),
        (10, 5, (5, 5, 5, 5), ["gone", "host", "device", "device"]),
        (4, 10, (5, 5), ["host", "host"]),
        (4, 4, (5,), ["gone"]),
        (10, 0, (5, 5, 5), ["gone", "device", "device"]),
        (0, 10, (5, 5), ["host", "host"]),
        (10, 20, (3, 3, 3, 10), ["host", "host", "host", "device"]),
    ],
)
def test_the_oldest_leave_the_device_for_the_host_and_the_host_for_good(
    device_rows, host_rows, lengths, where
):
    cache = filled(EmbeddingCache(ROW_BYTES * host_rows, ROW_BYTES * device_rows), *lengths)
    assert [kept(cache, number) for number in range(len(lengths))] == where
    assert cache.num_device_bytes == ROW_BYTES * sum(
        length for length, place in zip(lengths, where, strict=True) if place == "device"
    )
    assert cache.num_bytes == ROW_BYTES * sum(
        length for length, place in zip(lengths, where, strict=True) if place == "host"
    )


def test_what_was_asked_for_lately_stays_on_the_device():
    cache = filled(EmbeddingCache(80, 80), 5, 5)
    cache.get(bytes([0]))
    cache.put(bytes([2]), Rows(2, 5))  # type: ignore[arg-type]
    assert [kept(cache, number) for number in range(3)] == ["device", "host", "device"]
