"""From one picture or video as it was sent to the frames that the model sees.

What needs foreign decoders is here and nothing else is, so that a server can run it in a process that it may end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.processor.images import image_size, read_image
from export.processor.media.budget import NO_BUDGET, Budget
from export.processor.media.limits import DEFAULT_LIMITS, MediaLimits
from export.processor.media.medium import DecodedMedium
from export.processor.resize import smart_resize
from export.processor.settings import ImageSettings, VideoSettings
from export.processor.video.sampling import read_video


class MediaReader(Protocol):
    """Where media are decoded: in this process, or in one that can be ended."""

    def picture_sizes(self, pictures: Sequence[Any]) -> list[tuple[int, int]]:
        """Width and height of each, as their headers say.

        Raises:
            UserError: one is no picture.
        """
        ...

    def decode(self, kind: str, source: Any, budget: Budget = NO_BUDGET) -> DecodedMedium:
        """One medium of kind `image` or `video`.

        Raises:
            UserError: it cannot be used, or its budget not be followed.
        """
        ...


@dataclass(frozen=True)
class LocalReader:
    """Decodes in this process."""

    image_settings: ImageSettings
    video_settings: VideoSettings
    limits: MediaLimits = DEFAULT_LIMITS

    def picture_sizes(self, pictures: Sequence[Any]) -> list[tuple[int, int]]:
        return [image_size(picture) for picture in pictures]

    def decode(self, kind: str, source: Any, budget: Budget = NO_BUDGET) -> DecodedMedium:
        if kind == "video":
            return read_video(source, self.video_settings, self.limits, budget)
        settings = budget.image_settings(self.image_settings, self.limits)
        image, notes = read_image(source, self.limits)
        return DecodedMedium([resized_image(image, settings, budget)], size=image.size, notes=notes)


def resized_image(
    image: Image.Image, settings: ImageSettings, budget: Budget = NO_BUDGET
) -> NDArray[np.uint8]:
    """An RGB image at the size at which the model sees it: uint8 [H, W, 3].

    Raises:
        UserError: the picture is too elongated.
    """
    height, width = budget.size(settings) or smart_resize(image.height, image.width, settings)
    return np.asarray(image.resize((width, height), Image.Resampling(settings.resample)))
