import ml_dtypes
import numpy as np
import onnx
import pytest

from export.quantization.packing import nibbles, packed_int4, unpacked_int4

EVERY = np.arange(-8, 8, dtype=np.int8)


@pytest.mark.parametrize("shape", [(4, 4), (16,), (3, 5), (1, 1), (2, 3)])
def test_onnx_reads_the_packed_bytes_as_the_values(shape):
    values = np.resize(EVERY[::-1], shape)
    tensor = onnx.TensorProto(
        data_type=onnx.TensorProto.INT4, dims=shape, raw_data=packed_int4(values).tobytes()
    )
    stored = onnx.numpy_helper.to_array(tensor)
    assert stored.dtype == ml_dtypes.int4
    np.testing.assert_array_equal(stored.astype(np.int8), values)


@pytest.mark.parametrize("count", [0, 1, 2, 15, 16])
def test_unpacking_gives_back_what_was_packed(count):
    np.testing.assert_array_equal(unpacked_int4(packed_int4(EVERY[:count]), count), EVERY[:count])


def test_nibbles_of_a_word_come_lowest_bits_first():
    assert nibbles(np.array([[0x76543210, -1985229329]], np.int32)).tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7, 15, 14, 13, 12, 11, 10, 9, 8]
    ]
