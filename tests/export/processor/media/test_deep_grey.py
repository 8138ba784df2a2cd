import numpy as np
import pytest
from PIL import Image

from export.processor.images import load_image
from export.processor.media.deep_grey import grey_from_deep
from tests.support.pictures import encoded


def grey(values, dtype):
    return Image.fromarray(np.array([values], dtype))


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 257, 32896, 65535], np.uint16, [0, 1, 128, 255]),
        ([0, 100, 255, 4095], np.uint16, [0, 0, 1, 16]),  # 12 bits in 16, as viewers show them
        ([0, 100, 255], np.int32, [0, 100, 255]),
        ([0, 257, 65535], np.int32, [0, 1, 255]),
        ([-100, 4, 100], np.int32, [0, 133, 255]),
        ([0, 1_000_000], np.int32, [0, 255]),
        ([0.0, 0.5, 1.0], np.float32, [0, 128, 255]),
        ([0.0, 100.4, 255.0], np.float32, [0, 100, 255]),
        ([-1.0, 0.0, 1.0], np.float32, [0, 128, 255]),
        ([np.nan, np.inf, -np.inf, 0.0, 1.0], np.float32, [0, 255, 0, 0, 255]),
        ([np.nan, np.nan], np.float32, [0, 0]),
        ([7.0, 7.0], np.float32, [7, 7]),
    ],
)
def test_grey_is_scaled_by_its_range(values, dtype, expected):
    assert np.asarray(grey_from_deep(grey(values, dtype)))[0].tolist() == expected


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_a_file_of_sixteen_bits_is_no_white_sheet(format_):
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (20, 1))
    shown = np.asarray(load_image(encoded(Image.fromarray(ramp), format_)))
    assert np.array_equal(shown[0, :, 0], np.arange(256))
