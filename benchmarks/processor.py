"""Speed from pictures to patches, beside Transformers' Pillow processor in the same run.

    python -m benchmarks.processor [--runs 15]

Both get the same decoded picture and the same budgets and make the same bits (checked first). Runs alternate, so
that a slow moment of the machine hits both; medians are compared. The table comes last.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import PIL
from PIL import Image

from export.processor.images import load_image
from export.processor.media.decode import resized_image
from export.processor.patches import grid_of_frames, write_patches
from export.processor.settings import ImageSettings

HUB = ImageSettings(max_pixels=16384 * 28 * 28)
CLASS_DEFAULT = ImageSettings()
CASES = [
    (28, 28, HUB), (224, 224, HUB), (97, 640, HUB), (640, 480, HUB), (1280, 720, HUB),
    (1920, 1080, CLASS_DEFAULT), (1920, 1080, HUB), (4096, 3072, CLASS_DEFAULT), (4096, 3072, HUB),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=15, help="timed runs of each (default: 15)")
    runs = parser.parse_args().runs
    lines = [measure(width, height, settings, runs) for width, height, settings in CASES]
    print(
        f"Median of {runs} alternating runs each, milliseconds; Pillow {PIL.__version__}, NumPy {np.__version__}"
    )
    print("| picture | tokens | Transformers | qv-export | ratio (median) | ratio (fastest run) |")
    print("|---|---|---|---|---|---|")
    print("\n".join(lines))


def measure(width: int, height: int, settings: ImageSettings, runs: int) -> str:
    """Time one picture size in both processors; returns the table's line."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    theirs = transformers_processor(settings)
    expected, ours = theirs(image), patches_from_image(image, settings)
    if not np.array_equal(expected, ours):
        raise SystemExit(f"{width} x {height}: the two processors disagree")
    num_tokens = len(ours) // 4
    del expected, ours
    their_ms, our_ms = [], []
    for _ in range(runs):
        their_ms.append(milliseconds(lambda: theirs(image)))
        our_ms.append(milliseconds(lambda: patches_from_image(image, settings)))
    medians = statistics.median(their_ms), statistics.median(our_ms)
    return (
        f"| {width} x {height} | {num_tokens} | {medians[0]:.2f} | {medians[1]:.2f} "
        f"| {medians[0] / medians[1]:.2f} | {min(their_ms) / min(our_ms):.2f} |"
    )


def patches_from_image(image: Image.Image, settings: ImageSettings) -> np.ndarray:
    frames = [resized_image(load_image(image), settings)]
    patches = np.empty((np.prod(grid_of_frames(frames, settings)), settings.patch_values), np.float32)
    write_patches(frames, settings, patches)
    return patches


def transformers_processor(settings: ImageSettings) -> Callable[[Image.Image], np.ndarray]:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}
    )
    return lambda image: processor(images=[image], return_tensors="np")["pixel_values"]


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
