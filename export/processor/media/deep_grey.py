"""Grey of 16 or 32 bits as 8: by the range of its type, not clipped to white."""

import numpy as np
from PIL import Image

DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
_SIXTEEN_BITS = 65535


def grey_from_deep(image: Image.Image) -> Image.Image:
    """An "L" image.

    16 bits are a number from 0 to 65535, whatever the picture uses of it, as viewers show it. A number of 32 bits or a
    float has no range of its own: values from 0 to 255 stay as they are, floats from 0 to 1 and integers from 0 to
    65535 count as that, anything else is stretched from its least to its largest value.
    """
    values = np.asarray(image).astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    start, span = _range(image.mode, low, high)
    scaled = np.nan_to_num((values - start) * (255 / span), nan=0.0, posinf=255.0, neginf=0.0)
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _range(mode: str, low: float, high: float) -> tuple[float, float]:
    """The value that is black, and the distance to the one that is white."""
    if mode.startswith("I;16"):
        return 0.0, _SIXTEEN_BITS
    if low < 0:
        return low, (high - low) or 1.0
    if mode == "F" and high <= 1:
        return 0.0, 1.0
    if high <= 255:
        return 0.0, 255.0
    if mode == "I" and high <= _SIXTEEN_BITS:
        return 0.0, _SIXTEEN_BITS
    return low, (high - low) or 1.0
