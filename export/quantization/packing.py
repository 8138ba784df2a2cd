"""Two 4-bit integers a byte, as ONNX stores INT4: row-major, the first in the low half; an odd last one has a byte."""

from typing import Any

import numpy as np
import numpy.typing as npt


def nibbles(packed: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Unsigned 4-bit integers of words [..., M], lowest bits first: [..., 8 M] of 32-bit words, [..., 2 M] of bytes."""
    octets = np.ascontiguousarray(packed).view(np.uint8)
    halves = np.empty((*octets.shape, 2), np.uint8)
    np.bitwise_and(octets, 15, out=halves[..., 0])
    np.right_shift(octets, 4, out=halves[..., 1])
    flat: npt.NDArray[np.uint8] = halves.reshape(*packed.shape[:-1], -1)
    return flat


def unsigned_codes(words: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Codes of 4 or 8 bits in words [..., M], lowest bits first: [..., 32 M / bits] of 0 to 2^bits - 1."""
    return nibbles(words) if bits == 4 else np.ascontiguousarray(words).view(np.uint8)


def signed_codes(words: npt.NDArray[Any], bits: int) -> npt.NDArray[np.int8]:
    """As `unsigned_codes`, less the middle code 2^(bits - 1)."""
    middle = 1 << (bits - 1)
    # Flipping the middle's bit subtracts it from 8 bits; of 4 bits it leaves the sign to be spread.
    flipped = (unsigned_codes(words, bits) ^ np.uint8(middle)).view(np.int8)
    return flipped if bits == 8 else (flipped ^ np.int8(8)) - np.int8(8)


def packed_int4(values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Pack int8 values of -8 to 7, of any shape: flat bytes, half as many, rounded up."""
    flat = values.reshape(-1).view(np.uint8)
    packed: npt.NDArray[np.uint8] = np.bitwise_and(flat[0::2], 15)
    high = flat[1::2]
    packed[: high.size] |= np.left_shift(high, 4)
    return packed


def unpacked_int4(packed: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.int8]:
    """The first `count` values of flat bytes, int8 of -8 to 7."""
    values = nibbles(packed)[:count]
    return (values ^ 8).view(np.int8) - np.int8(8)
