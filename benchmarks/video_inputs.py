"""Which films are seen as a player shows them: containers and codecs, plain and in the ways in which films are odd.

    python -m benchmarks.video_inputs              the table
    python -m benchmarks.video_inputs --write      into docs/inputs.md, between its marks

Every film's frames show their own number as black and white blocks, so that what the model sees says which frames it
sees, whatever reads the film. FFmpeg's encoders write them; what a container or a codec cannot hold is a dash.
"""

import argparse
import io
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from export.errors import UserError
from export.processor.processor import Processor

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "inputs.md"
MARKS = ("<!-- benchmarks.video_inputs begins -->", "<!-- benchmarks.video_inputs ends -->")
WIDTH, HEIGHT = 168, 112
BITS = 8
_MILLISECONDS = Fraction(1, 1000)

COMBINATIONS: tuple[tuple[str, str, str], ...] = (
    *(
        (container, codec, "yuv420p")
        for container in ("mp4", "mov")
        for codec in ("libx264", "libx265", "mpeg4")
    ),
    ("mp4", "libsvtav1", "yuv420p"),
    ("mp4", "libvpx-vp9", "yuv420p"),
    ("mov", "mjpeg", "yuvj420p"),
    ("mov", "prores_ks", "yuv422p10le"),
    ("mov", "qtrle", "rgb24"),
    ("mov", "png", "rgb24"),
    *(
        ("matroska", codec, pixels)
        for codec, pixels in (
            ("libx264", "yuv420p"),
            ("libx265", "yuv420p"),
            ("mpeg4", "yuv420p"),
            ("libvpx", "yuv420p"),
            ("libvpx-vp9", "yuv420p"),
            ("libsvtav1", "yuv420p"),
            ("ffv1", "yuv420p"),
            ("mjpeg", "yuvj420p"),
        )
    ),
    *(("webm", codec, "yuv420p") for codec in ("libvpx", "libvpx-vp9", "libsvtav1")),
    *(("mpegts", codec, "yuv420p") for codec in ("libx264", "libx265")),
    *(
        ("avi", codec, pixels)
        for codec, pixels in (("mpeg4", "yuv420p"), ("mjpeg", "yuvj420p"), ("libx264", "yuv420p"))
    ),
    ("flv", "libx264", "yuv420p"),
    ("3gp", "libx264", "yuv420p"),
    ("asf", "wmv2", "yuv420p"),
    ("asf", "msmpeg4v3", "yuv420p"),
    ("flv", "flv1", "yuv420p"),
    ("gif", "gif", "rgb8"),
)
"""Container, encoder, pixel format."""

_STEADY = [number / 10 for number in range(60)]
_UNEVEN = [number / 10 for number in range(20)] + [2.0 + number for number in range(1, 13)]
_ISO_MEDIA = frozenset({"mp4", "mov", "3gp"})


@dataclass(frozen=True)
class Variation:
    """One way in which a film may be odd."""

    name: str
    times: Sequence[float]
    """When each frame is shown, in seconds."""
    options: Callable[[str], dict[str, str] | None] = lambda _container: {}
    """Of the container's writer; None where it cannot write such a film."""
    change: Callable[[bytes], bytes] = bytes
    """What is done to the file afterwards."""
    turned: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]] = lambda frame: frame
    """How the frame is shown, of what was encoded; undone before numbers are read."""
    least_share: float = 1.0
    """Of the film's seconds that must be seen."""


def _only_iso(options: dict[str, str]) -> Callable[[str], dict[str, str] | None]:
    return lambda container: options if container in _ISO_MEDIA else None


def _unknown_count(container: str) -> dict[str, str] | None:
    """Films that are written as they are recorded say neither how long they are nor how many frames they have."""
    if container in _ISO_MEDIA:
        return {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    return {"live": "1"} if container in {"matroska", "webm"} else None


def _with_matrix(a: int, b: int, c: int, d: int) -> Callable[[bytes], bytes]:
    """Write a track's display matrix (ISO/IEC 14496-12, section 8.3.2): 16.16 fixed point."""

    def change(film: bytes) -> bytes:
        content = bytearray(film)
        at = film.index(b"tkhd") + 4
        start = at + (52 if film[at] else 40)
        for place, value in zip((0, 4, 12, 16), (a, b, c, d), strict=True):
            content[start + place : start + place + 4] = struct.pack(">i", value << 16)
        return bytes(content)

    return change


def _damaged(film: bytes) -> bytes:
    """Nothing but zeros in a thirtieth of the file, past its middle."""
    start, length = len(film) * 11 // 20, max(len(film) // 30, 64)
    return film[:start] + bytes(length) + film[start + length :]


VARIATIONS = (
    Variation("plain", _STEADY),
    Variation("variable rate", _UNEVEN),
    Variation("late start", [5 + time for time in _STEADY]),
    Variation("no count", _STEADY, _unknown_count),
    Variation("rotated", _STEADY, _only_iso({}), _with_matrix(0, 1, -1, 0), lambda frame: np.rot90(frame, 1)),
    Variation("mirrored", _STEADY, _only_iso({}), _with_matrix(-1, 0, 0, 1), lambda frame: frame[:, ::-1]),
    Variation("damaged", _STEADY, change=_damaged, least_share=0.0),
)


def numbered_frame(number: int) -> npt.NDArray[np.uint8]:
    """A frame that shows its number: [H, W, 3], bits as blocks in two rows."""
    frame = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    for bit in range(BITS):
        row, column = divmod(bit, BITS // 2)
        rows = slice(HEIGHT * row // 2, HEIGHT * (row + 1) // 2)
        columns = slice(2 * WIDTH * column // BITS, 2 * WIDTH * (column + 1) // BITS)
        frame[rows, columns] = 235 if number >> bit & 1 else 20
    return frame


def number_of(frame: npt.NDArray[np.uint8]) -> int:
    """The number that a frame shows, at any size."""
    grey = frame.mean(-1)
    height, width = grey.shape
    number = 0
    for bit in range(BITS):
        row, column = divmod(bit, BITS // 2)
        y, x = (2 * row + 1) * height // 4, (2 * column + 1) * width // BITS
        number |= int(grey[y - 2 : y + 3, x - 2 : x + 3].mean() > 128) << bit
    return number


def film(container: str, codec: str, pixels: str, variation: Variation) -> bytes | None:
    """A film's bytes; None where it cannot be written."""
    options = variation.options(container)
    if options is None:
        return None
    file = io.BytesIO()
    try:
        with av.open(file, "w", format=container, options=options) as output:
            stream = output.add_stream(codec, rate=10)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, pixels, 10
            stream.codec_context.time_base = _MILLISECONDS
            for number, time in enumerate(variation.times):
                frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
                frame.pts, frame.time_base = round(time * 1000), _MILLISECONDS
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
    except (av.FFmpegError, ValueError, OSError):
        return None
    return variation.change(file.getvalue())


def seen_numbers(
    processor: Processor, content: bytes, turned: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]
) -> list[int]:
    """Which frames the model sees.

    Args:
        processor: of any checkpoint.
        content: the film's bytes.
        turned: undoes how the film is shown.

    Raises:
        UserError: the film is refused.
    """
    inputs = processor.inputs_from_messages(
        [{"role": "user", "content": [{"type": "video", "video": content}]}]
    )
    [(steps, rows, columns)] = inputs.grids
    settings = processor.image_settings
    merge, size = settings.merge_size, settings.patch_size
    patches = inputs.patches.reshape(
        steps, rows // merge, columns // merge, merge, merge, 3, settings.temporal_patch_size, size, size
    )
    # To [T, t, H, m, p, W, m, p, 3]: frames of whole pixels.
    pixels = patches.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(-1, rows * size, columns * size, 3)
    shown = pixels * np.array(settings.image_std) + np.array(settings.image_mean)
    frames = np.clip(np.rint(shown / settings.rescale_factor), 0, 255).astype(np.uint8)
    return [number_of(turned(frame)) for frame in frames]


def judged(processor: Processor, container: str, codec: str, pixels: str, variation: Variation) -> str:
    """A cell of the table: seen, refused, a dash, or what is wrong."""
    content = film(container, codec, pixels, variation)
    if content is None:
        return "–"
    try:
        numbers = seen_numbers(processor, content, variation.turned)
    except UserError as error:
        return "refused: " + str(error).split(":")[-1].strip()[:60] if "--verbose" in sys.argv else "refused"
    return verdict(numbers, dict(enumerate(variation.times)), variation.least_share)


def verdict(numbers: Sequence[int], times: Mapping[int, float], least_share: float = 1.0) -> str:
    """Whether frames that are seen are those of a film, in order and without a gap.

    Args:
        numbers: that the seen frames show.
        times: when each frame of the film is shown, by its number, ascending.
        least_share: of the film's seconds that must be seen; below 1, a frame may be damaged and show any number.
    """
    if least_share < 1:
        sound = [number for number in numbers if number in times]
        numbers = [
            number
            for number, highest in zip(sound, np.maximum.accumulate(sound), strict=True)
            if number == highest
        ]
    seen = [times[number] for number in numbers if number in times]
    if len(seen) < len(numbers) or seen != sorted(seen):
        return "**wrong frames**"
    all_times = list(times.values())
    # 2 frames a second are asked for: the largest step between two of them is that of the film, or a second.
    steps = np.diff([all_times[0], *seen, all_times[-1]])
    allowed = max(1.0, 1.5 * float(np.diff(all_times).max()))
    share = 1 - float(sum(step for step in steps if step > allowed)) / (all_times[-1] - all_times[0])
    if share > 1 - 1e-9:
        return "seen"
    return f"{share:.0%} seen" if share >= least_share else f"**{share:.0%} seen**"


def table(processor: Processor, combinations: Sequence[tuple[str, str, str]]) -> tuple[str, int]:
    """The table in Markdown, and how many cells are wrong."""
    lines = [
        "| container | codec | " + " | ".join(variation.name for variation in VARIATIONS) + " |",
        "|---" * (2 + len(VARIATIONS)) + "|",
    ]
    num_wrong = 0
    for container, codec, pixels in combinations:
        cells = [judged(processor, container, codec, pixels, variation) for variation in VARIATIONS]
        num_wrong += sum(cell.startswith("**") for cell in cells)
        lines.append(f"| {container} | {codec} | " + " | ".join(cells) + " |")
    return "\n".join(lines), num_wrong


def write_docs(text: str, marks: tuple[str, str] = MARKS) -> None:
    """Put a table between its marks."""
    page = DOCS.read_text(encoding="utf-8")
    before, rest = page.split(marks[0], 1)
    after = rest.split(marks[1], 1)[1]
    DOCS.write_text(f"{before}{marks[0]}\n\n{text}\n\n{marks[1]}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/inputs.md")
    parser.add_argument("--verbose", action="store_true", help="say why a film is refused")
    parser.add_argument("--quick", action="store_true", help="three combinations alone")
    options = parser.parse_args()
    av.logging.set_level(None)
    processor = Processor.from_directory(ROOT / "models" / "qwen2-vl-tiny")
    combinations = COMBINATIONS[:1] + COMBINATIONS[20:22] if options.quick else COMBINATIONS
    text, num_wrong = table(processor, combinations)
    print(text)
    if options.write:
        write_docs(text)
    return 1 if num_wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
