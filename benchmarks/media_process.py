"""What it costs that a picture is decoded in a process of its own: beside decoding it here, in the same run.

    python -m benchmarks.media_process [--runs 31] [--quick]

The header is read first, then the picture decoded and resized, as a server does. Runs alternate, so that a slow moment
of the machine hits both. Wall time is what a client waits; the processor's time, of this process and of those that it
started, says what the way costs on a machine that is busy with other things.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.measure import print_table
from engines.serving.media.pool import MediaPool
from export.processor.media.decode import LocalReader, MediaReader
from export.processor.settings import ImageSettings, VideoSettings

READER = LocalReader(ImageSettings(), VideoSettings())
SIZES = [(224, 224), (640, 480), (1920, 1080), (4000, 3000)]
HEADER = ("picture", "file", "here", "in a process", "more", "CPU here", "CPU in all", "more")


def photograph(width: int, height: int) -> bytes:
    """A JPEG about as large as a camera's."""
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = np.stack([columns * 255 / width, rows * 255 / height, (rows + columns) / 8 % 256], axis=2)
    noisy = smooth + np.random.default_rng(0).normal(0, 12, smooth.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()


def cpu_seconds() -> float:
    """Of this process and of all below it."""
    process = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in [process, *process.children(recursive=True)])


def measure(content: bytes, readers: tuple[Callable[[], MediaReader], ...], runs: int) -> list[list[float]]:
    """For each way of reading: wall milliseconds of each run, and at the end its processor milliseconds a run."""
    wall: list[list[float]] = [[] for _ in readers]
    cpu = [0.0 for _ in readers]
    for _ in range(runs + 1):
        for place, make in enumerate(readers):
            before, start = cpu_seconds(), time.perf_counter()
            reader = make()
            reader.picture_sizes([content])
            reader.decode("image", content)
            wall[place].append(1e3 * (time.perf_counter() - start))
            cpu[place] += 1e3 * (cpu_seconds() - before)
    return [[*one[1:], used / (runs + 1)] for one, used in zip(wall, cpu, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=31, help="of each (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="the smallest two, three runs")
    parser.add_argument("--work", type=Path, help="not needed here")
    options = parser.parse_args()
    sizes, runs = (SIZES[:2], 3) if options.quick else (SIZES, options.runs)
    rows = []
    with MediaPool() as pool:
        for width, height in sizes:
            content = photograph(width, height)
            makes = (lambda: READER, lambda: pool.reader(READER, time.monotonic() + 60))
            here, there = measure(content, makes, runs)
            walls = [statistics.median(one[:-1]) for one in (here, there)]
            rows.append(
                [
                    f"{width} x {height}",
                    f"{len(content) / 1e6:.2f} MB",
                    *(f"{wall:.1f} ms" for wall in walls),
                    f"{walls[1] - walls[0]:+.1f} ms",
                    f"{here[-1]:.1f} ms",
                    f"{there[-1]:.1f} ms",
                    f"{there[-1] - here[-1]:+.1f} ms",
                ]
            )
    print_table(f"Reading a picture, median of {runs} runs", HEADER, rows)


if __name__ == "__main__":
    main()
