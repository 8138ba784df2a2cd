"""Films that other programs write, and what is seen of them: Debian's ffmpeg and mkvtoolnix, in the ways they are used.

    python -m benchmarks.video_writers              the table
    python -m benchmarks.video_writers --write      into docs/inputs.md, between its marks

As `benchmarks.video_inputs`, whose films come from the library that also reads them: frames show their own numbers.
Here a film is cut without being encoded anew, rotated by its metadata, written to a pipe, damaged on its way, given
times by a file. What a container cannot hold is a dash.
"""

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from benchmarks.video_inputs import HEIGHT, ROOT, WIDTH, numbered_frame, seen_numbers, verdict, write_docs
from export.errors import UserError
from export.processor.processor import Processor

MARKS = ("<!-- benchmarks.video_writers begins -->", "<!-- benchmarks.video_writers ends -->")
_STEADY = {number: number / 10 for number in range(60)}
_UNEVEN = {number: number / 10 if number < 20 else 2.0 + number - 19 for number in range(32)}
_FROM_FILE = {number: number / 10 if number < 20 else 2.0 + number - 19 for number in range(60)}
_SLIDES = {number: 5.0 * number for number in range(12)}
_X264 = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "10"]
_X265 = ["-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=none:keyint=10"]
ENCODERS = {
    "mp4": _X264,
    "mov": [
        "-c:v",
        "libx265",
        "-pix_fmt",
        "yuv420p",
        "-tag:v",
        "hvc1",
        "-x265-params",
        "log-level=none:keyint=10",
    ],
    "mkv": _X264,
    "webm": [
        "-c:v",
        "libvpx-vp9",
        "-pix_fmt",
        "yuv420p",
        "-g",
        "10",
        "-deadline",
        "realtime",
        "-cpu-used",
        "8",
    ],
    "ts": ["-c:v", "mpeg2video", "-pix_fmt", "yuv420p", "-g", "10", "-q:v", "3"],
    "avi": ["-c:v", "mpeg4", "-pix_fmt", "yuv420p", "-g", "10", "-q:v", "3"],
    "flv": _X264,
}
CONTAINERS = tuple(ENCODERS)
Array = npt.NDArray[np.uint8]
Commands = Callable[[str], "list[list[str]] | None"]
"""From a container's suffix to the commands that write `film.<suffix>`, run one after another; None: no such film."""


@dataclass(frozen=True)
class Kind:
    """One way of writing films."""

    name: str
    commands: Commands
    times: Mapping[int, float]
    """When each frame that may be seen is shown, by its number."""
    turned: Callable[[Array], Array] = lambda frame: frame
    """Undoes how the film is shown."""
    least_share: float = 1.0
    """Of the film's seconds that must be seen."""


def _ffmpeg(
    *options: str,
    output: str = "film",
    rate: str = "10",
    encoder: Sequence[str] | None = None,
    container: str,
) -> list[str]:
    source = [
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{WIDTH}x{HEIGHT}",
        "-r",
        rate,
        "-i",
        "frames.rgb",
    ]
    chosen = list(ENCODERS[container] if encoder is None else encoder)
    return ["ffmpeg", "-v", "error", "-y", *source, *chosen, *options, f"{output}.{container}"]


def _copy(*options: str, container: str, before: Sequence[str] = ()) -> list[str]:
    return [
        "ffmpeg",
        "-v",
        "error",
        "-y",
        *before,
        "-i",
        f"plain.{container}",
        "-c",
        "copy",
        *options,
        f"film.{container}",
    ]


def _plain(container: str) -> list[str]:
    return _ffmpeg(output="plain", container=container)


def _only(containers: str, make: Callable[[str], list[list[str]]]) -> Commands:
    return lambda container: make(container) if container in containers.split() else None


def _piped(container: str) -> list[list[str]] | None:
    """To a pipe, in which nothing can be written again later: no length, no number of frames, no index."""
    format_ = {"mkv": "matroska", "ts": "mpegts"}.get(container, container)
    options = ["-movflags", "frag_keyframe+empty_moov"] if container in {"mp4", "mov"} else []
    command = _ffmpeg(*options, "-f", format_, container=container)[:-1]
    return [["sh", "-c", " ".join(f"'{word}'" for word in command) + f" pipe: | cat > film.{container}"]]


def _merged(*options: str) -> Commands:
    """By mkvmerge, of a film that ffmpeg wrote."""

    def make(container: str) -> list[list[str]] | None:
        if container not in {"mkv", "webm"}:
            return None
        webm = ["--webm"] if container == "webm" else []
        return [
            _plain(container),
            ["mkvmerge", "-q", *webm, "-o", f"film.{container}", *options, f"plain.{container}"],
        ]

    return make


_H264 = "mp4 mkv ts flv"
_SET_TIMES = "setpts=if(lt(N\\,20)\\,N/10\\,N-17)/TB"
KINDS = (
    Kind("plain", lambda c: [_ffmpeg(container=c)], _STEADY),
    Kind(
        "variable rate",
        lambda c: (
            [
                _ffmpeg(
                    "-vf",
                    _SET_TIMES,
                    "-vsync",
                    "vfr",
                    "-frames:v",
                    "32",
                    "-enc_time_base",
                    "1:1000",
                    container=c,
                )
            ]
            if c not in {"ts", "avi"}  # MPEG-2 and AVI have one rate
            else None
        ),
        _UNEVEN,
    ),
    Kind(
        "slides of 5 s",
        lambda c: [_ffmpeg("-frames:v", "12", rate="1/5", container=c)] if c != "ts" else None,
        _SLIDES,
    ),
    Kind(
        "cut from 1.05 to 3.05 s, not encoded anew",
        _only("mp4 mov", lambda c: [_plain(c), _copy("-t", "2", container=c, before=["-ss", "1.05"])]),
        {number: number / 10 for number in range(10, 32)},
    ),
    Kind(
        "late start",
        lambda c: [_plain(c), _copy("-copyts", container=c, before=["-itsoffset", "5"])],
        _STEADY,
    ),
    Kind("to a pipe", _piped, _STEADY),
    Kind(
        "rotated by metadata",
        _only("mp4 mov", lambda c: [_plain(c), _copy("-metadata:s:v", "rotate=90", container=c)]),
        _STEADY,
        lambda frame: np.rot90(frame, -1),
    ),
    Kind(
        "mirrored in the stream",
        _only(_H264, lambda c: [_mirrored(c)]),
        _STEADY,
        lambda frame: frame[:, ::-1],
    ),
    Kind(
        "3 of 60 packets lost",
        lambda c: [
            _plain(c),
            _copy("-bsf:v", "noise=amount=0:drop=eq(n\\,25)+eq(n\\,37)+eq(n\\,38)", container=c),
        ],
        _STEADY,
        least_share=0.8,
    ),
    Kind(
        "3 of 60 packets damaged",
        lambda c: [
            _plain(c),
            _copy("-bsf:v", "noise=amount='(eq(n\\,25)+eq(n\\,37)+eq(n\\,38))*20'", container=c),
        ],
        _STEADY,
        least_share=0.8,
    ),
    Kind(
        "HDR10, 10 bit",
        _only("mp4 mov mkv ts", lambda c: [_ffmpeg(*_colours("smpte2084"), encoder=_X265, container=c)]),
        _STEADY,
    ),
    Kind(
        "HLG, 10 bit",
        _only("mp4 mov mkv ts", lambda c: [_ffmpeg(*_colours("arib-std-b67"), encoder=_X265, container=c)]),
        _STEADY,
    ),
    Kind(
        "H.264 of 10 bit",
        _only(
            "mp4 mov mkv ts",
            lambda c: [_ffmpeg(encoder=["-c:v", "libx264", "-pix_fmt", "yuv420p10le"], container=c)],
        ),
        _STEADY,
    ),
    Kind(
        "interlaced",
        _only(
            "mp4 mov mkv ts",
            lambda c: [
                _ffmpeg(
                    "-flags", "+ildct+ilme", "-top", "1", encoder=[*_X264, "-x264opts", "tff=1"], container=c
                )
            ],
        ),
        _STEADY,
    ),
    Kind("mkvmerge", _merged(), _STEADY),
    Kind("mkvmerge, times from a file", _merged("--timestamps", "0:times.txt"), _FROM_FILE),
    Kind(
        "mkvmerge, a rate of 1000 claimed",
        _merged("--timestamps", "0:steady.txt", "--default-duration", "0:1000fps"),
        _STEADY,
    ),
    Kind("mkvmerge, 5 s late", _merged("--sync", "0:5000"), _STEADY),
    Kind(
        "mkvmerge, a part", _merged("--split", "parts:00:00:01-00:00:03"), {n: n / 10 for n in range(10, 31)}
    ),
    Kind("mkvmerge, without an index", _merged("--no-cues", "--disable-track-statistics-tags"), _STEADY),
    Kind("mkvmerge, packed packets", _merged("--compression", "0:zlib"), _STEADY),
    Kind(
        "mkvmerge, shown twice as wide", _merged("--display-dimensions", f"0:{2 * WIDTH}x{HEIGHT}"), _STEADY
    ),
)


def _mirrored(container: str) -> list[str]:
    return _ffmpeg(
        "-bsf:v",
        "h264_metadata=display_orientation=insert:flip=horizontal",
        encoder=_X264,
        container=container,
    )


def _colours(transfer: str) -> list[str]:
    return ["-color_primaries", "bt2020", "-color_trc", transfer, "-colorspace", "bt2020nc"]


def missing() -> str:
    """Why the films cannot be written here; empty where they can."""
    absent = [name for name in ("ffmpeg", "mkvmerge") if shutil.which(name) is None]
    return f"needs {' and '.join(absent)}: apt-get install ffmpeg mkvtoolnix" if absent else ""


def film(kind: Kind, container: str, folder: Path) -> bytes | None:
    """A film's bytes, written in a folder of its own; None where the container holds no such film.

    Raises:
        RuntimeError: the writer failed.
    """
    commands = kind.commands(container)
    if commands is None:
        return None
    (folder / "frames.rgb").write_bytes(b"".join(numbered_frame(number).tobytes() for number in range(60)))
    for name, times in (("times", _FROM_FILE), ("steady", _STEADY)):
        lines = [f"{1000 * time:.0f}" for time in times.values()]
        (folder / f"{name}.txt").write_text("# timestamp format v2\n" + "\n".join(lines) + "\n")
    for command in commands:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        # mkvmerge ends with 1 after a warning.
        if done.returncode > (command[0] == "mkvmerge"):
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
    [written] = [path for path in folder.iterdir() if path.stem.startswith("film")]
    return written.read_bytes()


def judged(processor: Processor, kind: Kind, container: str) -> str:
    """A cell of the table: seen, refused, a dash, or what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        content = film(kind, container, Path(folder))
    if content is None:
        return "–"
    try:
        numbers = seen_numbers(processor, content, kind.turned)
    except UserError as error:
        return f"**refused: {str(error)[:120]}**"
    return verdict(numbers, kind.times, kind.least_share)


def table(processor: Processor, kinds: Sequence[Kind]) -> tuple[str, int]:
    """The table in Markdown, and how many cells are wrong."""
    lines = ["| film | " + " | ".join(CONTAINERS) + " |", "|---" * (1 + len(CONTAINERS)) + "|"]
    num_wrong = 0
    for kind in kinds:
        cells = [judged(processor, kind, container) for container in CONTAINERS]
        num_wrong += sum(cell.startswith("**") for cell in cells)
        lines.append(f"| {kind.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines), num_wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/inputs.md")
    options = parser.parse_args()
    if reason := missing():
        raise SystemExit(reason)
    av.logging.set_level(None)
    processor = Processor.from_directory(ROOT / "models" / "qwen2-vl-tiny")
    text, num_wrong = table(processor, KINDS)
    print(text)
    if options.write:
        write_docs(text, MARKS)
    return 1 if num_wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
