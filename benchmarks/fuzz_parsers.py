"""Fuzzes what reads strangers' files and requests: each parser answers, or refuses with a message; nothing else.

    python -m benchmarks.fuzz_parsers [--target NAME] [--runs 100000] [--seconds N] [--seed S] [--quick]

Guided by coverage where `atheris` can be imported (`pip install atheris`); otherwise seeds are mutated at random. Each
parser runs in a process of its own. The table says how many executions there were, how many inputs were taken, and how
many kinds of unexpected exceptions came, which are told with an input that makes them. Exits with 1 if there are any.
"""

import argparse
import importlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.measure import REPOSITORY, print_table

TINY = REPOSITORY / "models" / "qwen2-vl-tiny"
HEADER = ("parser", "guided by", "executions", "taken", "refused", "unexpected", "slowest", "seconds")
_MAX_BYTES = 1 << 14
_PIECES = (b"9" * 30, b"-1", b"1e999", b"null", b"[]", b"{}", b'"', b"[" * 200, b"\xff" * 4)

Parser = Callable[[bytes], object]


@dataclass
class Target:
    """One parser."""

    make: Callable[[], Parser]
    seeds: Callable[[], list[bytes]]


def _tiny(name: str) -> Callable[[], list[bytes]]:
    return lambda: [(TINY / name).read_bytes(), b"{}"]


def _of_object(read: Callable[[dict[str, Any]], object]) -> Parser:
    from export.files.json_object import json_object_from_bytes

    return lambda data: read(json_object_from_bytes(data, "fuzzed"))


def _config() -> Parser:
    from export.checkpoint.config import config_from_json

    return _of_object(config_from_json)


def _image_settings() -> Parser:
    from export.processor.settings import image_settings_from_json

    return _of_object(image_settings_from_json)


def _video_settings() -> Parser:
    from export.processor.settings import ImageSettings, video_settings_from_json

    return _of_object(lambda content: video_settings_from_json(content, ImageSettings()))


def _generation_config() -> Parser:
    from export.checkpoint.generation_config import generation_config_from_json

    return _of_object(generation_config_from_json)


def _manifest() -> Parser:
    from export.records.manifest import Manifest

    return lambda data: Manifest.from_json(data.decode("utf-8", "surrogateescape"))


def _engine_record() -> Parser:
    from export.records.engine_record import EngineRecord

    return lambda data: EngineRecord.from_json(data.decode("utf-8", "surrogateescape"))


def _verdict() -> Parser:
    from export.records.verdicts import Verdict

    return _of_object(lambda content: Verdict.from_json(content, "fuzzed"))


def _server_settings() -> Parser:
    from engines.serving.settings import ServerSettings

    return lambda data: ServerSettings.from_json(data.decode("utf-8", "surrogateescape"))


def _safetensors() -> Parser:
    from export.weights.safetensors_file import read_safetensors_header

    path = Path(tempfile.mkdtemp()) / "fuzzed.safetensors"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return read_safetensors_header(path)

    return read


def _safetensors_seeds() -> list[bytes]:
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
            "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
        }
    ).encode()
    return [len(header).to_bytes(8, "little") + header + bytes(22)]


def _template() -> Parser:
    from export.processor.text.template import ChatTemplate

    return lambda data: ChatTemplate(data.decode("utf-8", "replace"), "fuzzed", {})


def _template_seeds() -> list[bytes]:
    content = json.loads((TINY / "tokenizer_config.json").read_text(encoding="utf-8"))
    return [
        str(content.get("chat_template", "")).encode(),
        b"{% for m in messages %}{{ m['content'] }}{% endfor %}",
    ]


def _body() -> Parser:
    from engines.serving.limits import RequestLimits
    from engines.serving.media.request_media import RequestMedia
    from engines.serving.messages import bounded_messages
    from engines.serving.openai.request.schema import parse_body

    limits = RequestLimits(max_context=512)

    def read(data: bytes) -> object:
        asked = parse_body(data, limits)
        messages = bounded_messages(asked.messages, limits)
        media = RequestMedia([], limits, None)
        return [media.resolved(dict(message)) for message in messages]

    return read


def _body_seeds() -> list[bytes]:
    from benchmarks.hostile_media import data_url, png_of_nothing

    picture = {"type": "image_url", "image_url": {"url": data_url(png_of_nothing(8, 8)), "detail": "low"}}
    film = {"type": "video", "video": [data_url(png_of_nothing(8, 8))] * 2, "fps": 2.0}
    text = {"type": "text", "text": 'a "quoted" \\ word'}
    return [
        json.dumps({"messages": [{"role": "user", "content": content}], **fields}).encode()
        for content, fields in (
            ("Hello", {"max_tokens": 4, "stop": ["a"], "logit_bias": {"5": -1}}),
            ([picture, text], {"temperature": 0.5, "response_format": {"type": "json_object"}}),
            ([film, text], {"stream": True, "stream_options": {"include_usage": True}}),
        )
    ]


def _conversation() -> Parser:
    from engines.serving.limits import RequestLimits
    from engines.serving.messages import read_messages
    from export.processor.processor import Processor

    processor = Processor.from_directory(TINY)
    limits = RequestLimits(max_context=512)
    return lambda data: processor.inputs_from_messages(read_messages(data, limits), max_tokens=512)


def _conversation_seeds() -> list[bytes]:
    turns = [
        ("system", "s"),
        ("user", "What <|im_end|> is this?"),
        ("assistant", "It is."),
        ("user", "Sure?"),
    ]
    return [json.dumps([{"role": role, "content": text} for role, text in turns]).encode()]


def _data_url() -> Parser:
    from export.processor.media.data_urls import source_from_text

    return lambda data: source_from_text(data.decode("utf-8", "replace"), "picture")


def _mp4() -> Parser:
    from export.processor.video.mp4_tables import check_tables

    return lambda data: check_tables(io.BytesIO(data), "fuzzed")


def _film_seeds() -> list[bytes]:
    from benchmarks.hostile_media import film

    return [film(3, 96, 64)]


def _animation() -> Parser:
    from export.processor.media.limits import MediaLimits
    from export.processor.video.animations import read_animation

    return lambda data: read_animation(data, "fuzzed", MediaLimits(max_video_frames=36_000))


def _animation_seeds() -> list[bytes]:
    from benchmarks.hostile_media import gif_of_frames, png_of_nothing, webp_of_frames

    return [gif_of_frames(3, 8), webp_of_frames(3, 8), png_of_nothing(8, 8)]


def _picture_header() -> Parser:
    from export.processor.media.decode import LocalReader
    from export.processor.settings import ImageSettings, VideoSettings

    reader = LocalReader(ImageSettings(), VideoSettings())
    return lambda data: reader.picture_sizes([data])


def _picture_seeds() -> list[bytes]:
    from benchmarks.hostile_media import icon_with_poster, jpeg_of_scans, picture_of, plain_ppm, qoi_of_runs

    formats = ("BMP", "GIF", "TIFF", "WEBP", "JPEG2000", "AVIF", "TGA", "PCX", "SGI")
    return [
        *(picture_of(one, 8) for one in formats),
        *(jpeg_of_scans(12, 16), plain_ppm(4), qoi_of_runs(8), icon_with_poster()[:_MAX_BYTES]),
    ]


def _located() -> Parser:
    from export.processor.text.located import located_in_text

    return lambda data: located_in_text(data.decode("utf-8", "replace"), [(640, 480)])


TARGETS: dict[str, Target] = {
    "config.json": Target(_config, _tiny("config.json")),
    "preprocessor_config.json": Target(_image_settings, _tiny("preprocessor_config.json")),
    "video settings": Target(_video_settings, _tiny("video_preprocessor_config.json")),
    "generation_config.json": Target(_generation_config, _tiny("generation_config.json")),
    "manifest.json": Target(_manifest, lambda: [b'{"format": 1, "files": [], "graphs": {}, "weights": []}']),
    "engine.json": Target(_engine_record, lambda: [b'{"format": 1, "key": "x", "inputs": {}, "files": {}}']),
    "verdict": Target(_verdict, lambda: [b'{"result": "pass", "engine": "x", "bundle_key": "0"}']),
    "server settings": Target(
        _server_settings,
        lambda: [b'{"num_slots": 8, "scheduler": {"max_queue": 3}, "requests": {}, "media": {}}'],
    ),
    "safetensors": Target(_safetensors, _safetensors_seeds),
    "chat template": Target(_template, _template_seeds),
    "request body": Target(_body, _body_seeds),
    "conversation and tokenizer": Target(_conversation, _conversation_seeds),
    "data URL": Target(_data_url, lambda: [b"data:image/png;base64,iVBORw0KGgo=", b"AAAA" * 20]),
    "MP4 tables": Target(_mp4, _film_seeds),
    "animations": Target(_animation, _animation_seeds),
    "picture headers": Target(_picture_header, _picture_seeds),
    "boxes in an answer": Target(
        _located, lambda: [b"<|object_ref_start|>a<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>"]
    ),
}


@dataclass
class Count:
    """What came of the executions so far."""

    executions: int = 0
    taken: int = 0
    refused: int = 0
    slowest_seconds: float = 0.0
    unexpected: dict[str, str] = field(default_factory=dict)

    def run(self, parse: Parser, data: bytes) -> None:
        """Parse once, and take note of how it ended."""
        from engines.serving.openai.errors import ApiError
        from export.errors import UserError

        start = time.perf_counter()
        try:
            parse(data)
            self.taken += 1
        except (UserError, ApiError):
            self.refused += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            place = error.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else ""
            self.unexpected.setdefault(
                f"{type(error).__name__} at {where}", f"{error!s:.200} from {data[:200]!r}"
            )
        self.executions += 1
        self.slowest_seconds = max(self.slowest_seconds, time.perf_counter() - start)


def mutated(random: Random, seeds: list[bytes]) -> bytes:
    """A seed with a few changes: bits, pieces lost, doubled, or of another seed, and large numbers."""
    data = bytearray(random.choice(seeds))
    for _ in range(random.randint(1, 6)):
        at = random.randrange(len(data) + 1)
        kind = random.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << random.randrange(8)
        elif kind == 1:
            del data[at : at + random.choice([1, 2, 8, 64])]
        elif kind == 2:
            other = random.choice(seeds)
            start = random.randrange(len(other) + 1)
            data[at:at] = other[start : start + random.choice([1, 4, 16, 200])]
        elif kind == 3:
            data[at:at] = random.choice(
                [b"9" * 30, b"-1", b"1e999", b"null", b"[]", b"{}", b'"', b"[" * 200, b"\xff" * 4]
            )
        elif kind == 4 and data:
            data[at : at + 4] = random.choice(
                [bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00"]
            )
        else:
            data[at:at] = data[at : at + random.choice([1, 10, 100])]
    return bytes(data[:_MAX_BYTES])


def fuzz(name: str, runs: int, seconds: float, seed: int, result: Path) -> None:
    """In a process of its own: run one target, and write what came of it, now and then and at the end."""
    target, count = TARGETS[name], Count()
    seeds = target.seeds()
    until = time.monotonic() + seconds
    guided = _atheris()

    def write() -> None:
        result.write_text(json.dumps({**vars(count), "guided": guided is not None}), encoding="utf-8")

    if guided is None:
        parse, random = target.make(), Random(f"{name} {seed}")
        while count.executions < runs and time.monotonic() < until:
            count.run(parse, mutated(random, seeds))
        write()
        return
    with guided.instrument_imports(include=["export", "engines"]):
        parse = target.make()
    corpus = Path(tempfile.mkdtemp())
    for number, content in enumerate(seeds):
        (corpus / str(number)).write_bytes(content)

    def once(data: bytes) -> None:
        count.run(parse, data)
        if count.executions % 500 == 0 or count.executions >= runs:
            write()

    most = max(1, int(seconds))
    options = [
        f"-runs={runs}",
        f"-seed={seed + 1}",
        f"-max_len={_MAX_BYTES}",
        f"-max_total_time={most}",
        "-verbosity=0",
    ]
    guided.Setup([sys.argv[0], *options, str(corpus)], once)
    guided.Fuzz()


def _atheris() -> Any:
    try:
        return importlib.import_module("atheris")
    except ImportError:
        return None


def row(name: str, options: argparse.Namespace, runs: int, findings: list[str]) -> list[str]:
    """Fuzz one target in a child."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        command = [sys.executable, "-m", "benchmarks.fuzz_parsers", "--child", str(result), "--target", name]
        command += ["--runs", str(runs), "--seconds", str(options.seconds), "--seed", str(options.seed)]
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if not result.exists():
            findings.append(f"{name}: the process ended with {ended.returncode}: {ended.stderr[-2000:]}")
            return [name, "", "0", "0", "0", "1", "", ""]
        found = json.loads(result.read_text(encoding="utf-8"))
    if ended.returncode:
        findings.append(f"{name}: the process ended with {ended.returncode}: {ended.stderr[-2000:]}")
    findings += [f"{name}: {kind}: {what}" for kind, what in found["unexpected"].items()]
    counts = (found["executions"], found["taken"], found["refused"], len(found["unexpected"]))
    return [
        name,
        "coverage" if found["guided"] else "chance",
        *(f"{one:,}" for one in counts),
        f"{found['slowest_seconds'] * 1e3:.0f} ms",
        f"{time.monotonic() - start:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=TARGETS, help="(default: all, one after the other)")
    parser.add_argument("--runs", type=int, default=100_000, help="of each parser (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=3600, help="of each parser at most (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few hundred of each")
    parser.add_argument("--work", type=Path, help="not needed here")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        fuzz(options.target, options.runs, options.seconds, options.seed, options.child)
        return
    runs = 300 if options.quick else options.runs
    findings: list[str] = []
    rows = [row(name, options, runs, findings) for name in ([options.target] if options.target else TARGETS)]
    print(*findings, sep="\n", file=sys.stderr)
    print_table(f"Parsers of strangers' bytes, seed {options.seed}", HEADER, rows)
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
