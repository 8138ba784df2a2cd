"""What is known of a decoded picture or video: the frames that the model sees, when they stand, and what was lost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class DecodedMedium:
    """One picture or video at the size at which the model sees it."""

    frames: Sequence[NDArray[np.uint8]]
    """Each [H, W, 3], all of one size; one of a picture."""
    seconds: tuple[float, ...] = ()
    """When each frame of a video stands, from its first one; empty where there is no clock: pictures, lists."""
    size: tuple[int, int] | None = None
    """Width and height of a picture as it was sent, upright; None of a video."""
    notes: tuple[str, ...] = ()
    """What was lost or is shown otherwise than the file says, a sentence each."""
