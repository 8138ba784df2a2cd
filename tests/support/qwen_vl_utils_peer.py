"""What the publisher's own `qwen-vl-utils` makes of a picture or video, called as its user would call it.

torchvision, which does nothing there but scale a video's frames, is stood in for by torch's own interpolation, which
it calls itself. To install it would change what is compared elsewhere: a Transformers that finds it takes other
image processors.
"""

import contextlib
import importlib
import io
import sys
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image


@cache
def vision_process() -> Any:
    """The module `qwen_vl_utils.vision_process`."""
    names = ("torchvision", "torchvision.io", "torchvision.transforms")
    torchvision, reader, transforms = (ModuleType(name) for name in names)
    # Both are read when the package is imported, or by a reader that is not used here.
    torchvision.__dict__.update(__version__="0", io=reader, transforms=transforms)
    transforms.__dict__.update(
        functional=SimpleNamespace(resize=_resize), InterpolationMode=SimpleNamespace(BICUBIC="bicubic")
    )
    stand_ins = dict(zip(names, (torchvision, reader, transforms), strict=True))
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("qwen_vl_utils.vision_process")
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def seen_picture(picture: Image.Image, **asked: Any) -> npt.NDArray[np.uint8]:
    """The picture as it goes to the processor: [H, W, 3]."""
    return np.asarray(vision_process().fetch_image({"image": picture, **asked}))


def seen_video(video: Path | list[Image.Image], **asked: Any) -> npt.NDArray[np.uint8]:
    """Frames as they go to the processor: [T, H, W, 3].

    Raises:
        ValueError: what is asked does not fit the video.
    """
    pixels: npt.NDArray[np.float32] = video_tensor(video, **asked).permute(0, 2, 3, 1).numpy()
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def video_tensor(video: Path | list[Image.Image], reader: str = "decord", **asked: Any) -> torch.Tensor:
    """The tensor that `fetch_video` returns: float32 [T, 3, H, W], read by one of the package's readers."""
    module = vision_process()
    module.VIDEO_READER_BACKENDS["torchvision"] = module.VIDEO_READER_BACKENDS[reader]  # taken after an error
    module.get_video_reader_backend.cache_clear()
    module.FORCE_QWENVL_VIDEO_READER = reader
    source = str(video) if isinstance(video, Path) else video
    with contextlib.redirect_stderr(io.StringIO()):
        frames: torch.Tensor = module.fetch_video({"video": source, **asked})
    return frames


def _resize(frames: torch.Tensor, size: list[int], **_: Any) -> torch.Tensor:
    return torch.nn.functional.interpolate(frames.float(), size, mode="bicubic", antialias=True)
