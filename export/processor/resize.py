"""The size to which a picture or a video's frame is resized.

Both sides become multiples of 28 pixels (one visual token), within a budget of pixels, the aspect ratio kept as far
as that allows. Pure integer and float arithmetic, no pixels here.
"""

import math
from dataclasses import replace

from export.errors import UserError
from export.processor.settings import ImageSettings, VideoSettings

MAX_ASPECT_RATIO = 200


def smart_resize(height: int, width: int, settings: ImageSettings) -> tuple[int, int]:
    """The size at which a picture of `height` x `width` is seen.

    Follows Transformers' Qwen2VLImageProcessor to the pixel: sides round half to even (42 -> 56, 70 -> 56), and the
    smallest side is kept at one token only where the picture is shrunk. A very small side rounds to zero, which
    counts as below `min_pixels`, so such a picture is enlarged (13 x 2000 -> 28 x 700).

    Returns:
        Height and width, multiples of `settings.factor`. They may exceed `max_pixels` where the aspect ratio is
        extreme, because no side falls below one token.

    Raises:
        UserError: a side is more than 200 times the other.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise UserError(
            f"The picture is {width} x {height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other. "
            "Crop it, or cut it into several pictures."
        )
    factor = settings.factor
    # Python's round() halves to even, as the model was trained with.
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > settings.max_pixels:
        shrink = math.sqrt((height * width) / settings.max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < settings.min_pixels:
        enlarge = math.sqrt(settings.min_pixels / (height * width))
        new_height = math.ceil(height * enlarge / factor) * factor
        new_width = math.ceil(width * enlarge / factor) * factor
    return new_height, new_width


def video_frame_size(height: int, width: int, num_steps: int, settings: VideoSettings) -> tuple[int, int]:
    """The size of every frame of a video of `num_steps` temporal steps (pairs of frames).

    As `smart_resize` within the per-frame budget, while the whole video stays within `settings.max_tokens`; then each
    step has an even share of that total, below the per-frame minimum if need be: 384 steps have 42 tokens each.
    (Transformers bounds no total by default; the paper does, section 2.1.)

    Raises:
        UserError: a side is more than 200 times the other.
    """
    share_pixels = settings.max_tokens * settings.frame.factor**2 // num_steps
    frame = replace(
        settings.frame,
        min_pixels=min(settings.frame.min_pixels, share_pixels),
        max_pixels=min(settings.frame.max_pixels, share_pixels),
    )
    new_height, new_width = smart_resize(height, width, frame)
    # Enlarging rounds up and an extreme aspect ratio keeps a side at one token: both may overshoot the share.
    if num_steps * new_height * new_width > settings.max_tokens * frame.factor**2:
        rows, columns = _largest_grid(height, width, settings.max_tokens // num_steps)
        return rows * frame.factor, columns * frame.factor
    return new_height, new_width


def _largest_grid(height: int, width: int, max_tokens: int) -> tuple[int, int]:
    """Rows and columns nearest to the aspect ratio of `height` x `width`, at most `max_tokens` together."""
    side = math.sqrt(height * width / max_tokens)
    rows = max(1, math.floor(height / side))
    columns = max(1, math.floor(width / side))
    # Their product fits unless one of them was raised to 1: then the other is the whole product.
    return min(rows, max_tokens), min(columns, max_tokens)
