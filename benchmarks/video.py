"""Speed and memory from a film's file to patches: decode, sample, resize, cut up; beside `qwen-vl-utils`.

    python -m benchmarks.video [--runs 5] [--seconds 60]

A film of a minute, 1920 x 1080, H.264 at 30 frames a second, seen at two frames a second in 16,384 tokens. Every run
is a process of its own; runs alternate, so that a slow moment of the machine hits all; medians are compared. The
readers of `qwen-vl-utils` are those that are installed here: decord, torchcodec, and PyAV, whose whole films
torchvision kept in memory, until it had no reader any more; here it keeps the chosen frames. The table comes last.
"""

import argparse
import os
import statistics
import time
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import add_work_option
from benchmarks.measure import Measurement, measure

WIDTH, HEIGHT, RATE = 1920, 1080, 30
_GROUP_SECONDS = 5
TOKENS = 16384
READERS = ("decord", "torchcodec", "pyav")
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5, help="runs of each (default: 5)")
    parser.add_argument("--seconds", type=int, default=60, help="of the film (default: 60)")
    parser.add_argument(
        "--b-frames",
        type=int,
        default=3,
        help="between others: 3 as x264 writes, 0 as many phones do (default: 3)",
    )
    parser.add_argument("--quick", action="store_true", help="ten seconds, one run")
    add_work_option(parser)
    options = parser.parse_args()
    if options.quick:
        options.runs, options.seconds = 1, 10
    name = f"film-{options.seconds}s-1080p-b{options.b_frames}.mp4"
    film = written_film(options.work.resolve() / name, options.seconds, options.b_frames)
    contestants: dict[str, Any] = {"qv-export": lambda: measure("ours", ours, film=film)}
    for reader in READERS:
        if find_spec("av" if reader == "pyav" else reader):
            contestants[f"qwen-vl-utils, {reader}"] = lambda reader=reader: measure(
                reader, theirs, film=film, reader=reader
            )
    runs: dict[str, list[Measurement]] = {name: [] for name in contestants}
    for _ in range(options.runs):
        for name, run in contestants.items():
            runs[name].append(run())
    shapes = {tuple(run.result["shape"]) for measured in runs.values() for run in measured}
    if len(shapes) > 1:
        raise SystemExit(f"Not the same work: patches of {sorted(shapes)}.")
    print(
        f"{options.seconds} s of {WIDTH} x {HEIGHT} H.264 with {options.b_frames} B-frames, "
        f"{film.stat().st_size / MIB:.1f} MiB, to {shapes.pop()[0] // 4} tokens; median of {options.runs} alternating "
        f"runs, {len(os.sched_getaffinity(0))} cores"
    )
    print("| reader | seconds | of processor time | ratio to ours | memory over the imports, MiB |")
    print("|---|---|---|---|---|")
    base = _median(runs["qv-export"], "seconds")
    for name, measured in runs.items():
        seconds = _median(measured, "seconds")
        memory = statistics.median(run.peak_rss_bytes - run.result["rss_bytes"] for run in measured) / MIB
        print(
            f"| {name} | {seconds:.2f} | {_median(measured, 'cpu_seconds'):.2f} | {seconds / base:.2f} | {memory:.0f} |"
        )


def _median(measured: list[Measurement], key: str) -> float:
    return statistics.median(run.result[key] for run in measured)


def ours(film: str) -> dict[str, Any]:
    """The product's own way, in this process."""
    from dataclasses import replace

    import numpy as np

    from export.processor.media.decode import LocalReader
    from export.processor.patches import grid_of_frames, write_patches
    from export.processor.settings import ImageSettings, VideoSettings

    settings = replace(VideoSettings(), max_tokens=TOKENS)
    reader = LocalReader(ImageSettings(), settings)

    def run() -> Any:
        frames = reader.decode("video", Path(film)).frames
        patches = np.empty(
            (int(np.prod(grid_of_frames(frames, settings.frame))), settings.frame.patch_values), np.float32
        )
        write_patches(frames, settings.frame, patches)
        return patches

    return _timed(run)


def theirs(film: str, reader: str) -> dict[str, Any]:
    """The same by `fetch_video`, and then what Transformers' video processor does, in place."""
    import torch

    from export.processor.settings import ImageSettings
    from tests.support.qwen_vl_utils_peer import video_tensor, vision_process

    settings = ImageSettings()
    if reader == "pyav":
        vision_process().VIDEO_READER_BACKENDS[reader] = _read_by_pyav
    mean = torch.tensor(settings.image_mean)[:, None, None] * 255
    std = torch.tensor(settings.image_std)[:, None, None] * 255

    def run() -> Any:
        frames = video_tensor(Path(film), reader, total_pixels=TOKENS * 784)  # [T, 3, H, W]
        height, width = frames.shape[2:]
        values = frames.sub_(mean).div_(std)
        parts = values.reshape(-1, 2, 3, height // 28, 2, 14, width // 28, 2, 14)
        return parts.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, settings.patch_values)

    return _timed(run)


def _timed(run: Any) -> dict[str, Any]:
    import psutil

    rss_bytes = psutil.Process().memory_info().rss
    wall, cpu = time.perf_counter(), time.process_time()
    patches = run()
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "rss_bytes": rss_bytes,
        "shape": list(patches.shape),
    }


def _read_by_pyav(asked: dict[str, Any]) -> Any:
    """A reader for `qwen-vl-utils` that decodes with PyAV as many programs do, and keeps the chosen frames."""
    import av
    import torch

    from tests.support.qwen_vl_utils_peer import vision_process

    with av.open(asked["video"]) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or RATE)
        count = vision_process().smart_nframes(asked, total_frames=stream.frames, video_fps=rate)
        wanted = torch.linspace(0, stream.frames - 1, count).round().long().tolist()
        chosen = set(wanted)
        kept = [
            torch.from_numpy(frame.to_ndarray(format="rgb24"))
            for number, frame in enumerate(container.decode(stream))
            if number in chosen
        ]
    video = torch.stack(kept).permute(0, 3, 1, 2)
    return video, {"frames_indices": wanted}, count / stream.frames * rate


def written_film(path: Path, seconds: int, num_b_frames: int) -> Path:
    """The film, written once: some seconds are encoded, then repeated packet by packet."""
    if path.exists():
        return path
    import io

    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    group = io.BytesIO(_encoded_group(num_b_frames))
    partial = path.with_suffix(f".{os.getpid()}.mp4")
    with av.open(group, "r") as source, av.open(partial, "w") as output:
        stream = source.streams.video[0]
        copy = output.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        length = round(_GROUP_SECONDS / Fraction(stream.time_base or Fraction(1, 1000)))
        for repeat in range(seconds // _GROUP_SECONDS):
            for packet in packets:
                again = av.Packet(bytes(packet))
                again.pts = (packet.pts or 0) + repeat * length
                again.dts = (packet.dts or 0) + repeat * length
                again.duration, again.time_base = packet.duration, packet.time_base
                again.is_keyframe, again.stream = packet.is_keyframe, copy
                output.mux(again)
    partial.rename(path)
    return path


def _encoded_group(num_b_frames: int) -> bytes:
    """Two soft patterns that move against each other, a little grain: about five megabits a second."""
    import io

    import av
    import numpy as np

    rng = np.random.default_rng(0)
    num_frames = _GROUP_SECONDS * RATE

    def pattern() -> Any:
        coarse = rng.integers(0, 110, (HEIGHT // 24 + 2, (WIDTH + 8 * num_frames) // 24 + 2, 3), np.uint8)
        return np.kron(coarse, np.ones((24, 24, 1), np.uint8))[:HEIGHT]

    left, right = pattern(), pattern()
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        options = {"preset": "veryfast", "crf": "26", "bf": str(num_b_frames), "b_strategy": "0"}
        stream = output.add_stream("libx264", rate=RATE, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", num_frames
        for number in range(num_frames):
            ahead, back = 8 * number, 8 * (num_frames - number)
            frame = left[:, ahead : ahead + WIDTH] + right[:, back : back + WIDTH]
            frame += rng.integers(0, 12, frame.shape, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return file.getvalue()


if __name__ == "__main__":
    main()
