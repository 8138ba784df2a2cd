"""What a bundle writes down about itself, and how a file is recognised again."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from export.contract import DecoderStage, decoder_stages
from export.errors import UserError
from export.files.atomic import replace_text
from export.files.checks import is_count
from export.files.json_fields import Check, read_fields
from export.files.json_object import json_object_from_bytes, parse_json_object

FORMAT = "qv-export bundle"
FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
WeightsMode = Literal["copy", "link"]

CHUNK_BYTES = 8 << 20


def _is_inside(name: str) -> bool:
    if not name or "\\" in name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.parts != ()


@dataclass(frozen=True)
class FileRecord:
    """A file of the bundle: its size and what its bytes were when it was written."""

    name: Annotated[str, Check("a path inside the bundle", _is_inside)]
    """Path inside the bundle, with forward slashes."""
    bytes: Annotated[int, Check("a size", is_count)]
    sha256: Annotated[str | None, Check("a string or null")]
    """Digest of the whole file; None for linked weights, which are never read as a whole."""
    fingerprint: Annotated[str | None, Check("a string or null")] = None
    """`fingerprint_safetensors` of a weight file; None for other files."""

    @classmethod
    def from_file(cls, path: Path) -> "FileRecord":
        """Record a small file (a graph, a tokenizer): reads it as a whole."""
        return cls(path.name, path.stat().st_size, sha256_of(path))


@dataclass(frozen=True)
class Source:
    """The checkpoint that a bundle was made from."""

    name: str
    config_sha256: str


MAX_RANKS = 1024


def _is_group(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= MAX_RANKS


@dataclass(frozen=True)
class Calibration:
    """The conversations that a bundle's quantized weights were made for."""

    source: str
    """Name of the folder or file."""
    num_samples: Annotated[int, Check("a count", is_count)]
    sha256: str
    """Of all that the model saw of them, in order: token ids, positions and patches."""


def _are_stages(layers: Sequence[int]) -> bool:
    return len(layers) != 1 and all(count > 0 for count in layers)


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds."""

    qv_export_version: str
    created: str
    """UTC, ISO 8601. Not part of the key: two exports of one checkpoint have one key."""
    tools: Mapping[str, str]
    """Version of every package that shapes the graphs' bytes."""
    source: Source
    dtype: str
    weights_mode: Annotated[str, Check("copy or link", {"copy", "link"}.__contains__)]
    graphs: Mapping[str, FileRecord]
    """By role: "vision", and the decoder's in the order of `graph_names`."""
    weights: tuple[FileRecord, ...]
    files: tuple[FileRecord, ...]
    """Configuration, tokenizer and processor files."""
    key: str
    """`content_key` of everything that could change what the graphs compute."""
    stages: Annotated[tuple[int, ...], Check("a list of numbers of layers", _are_stages)] = ()
    """How many layers each stage of the decoder has; empty for a decoder in one graph."""
    tensor_parallel: Annotated[int, Check(f"a number of ranks, 1 to {MAX_RANKS}", _is_group)] = 1
    """Of the tensor-parallel group that each stage is divided among; 1: it is not divided."""
    precision: Mapping[str, str] = field(default_factory=dict)
    """Of the parts whose linear layers are stored otherwise, in words: {"decoder": "int4 in groups of 128, by AWQ"}."""
    calibration: Calibration | None = None
    """What the quantized weights were made for; None: each value was rounded by itself."""
    format_version: int = FORMAT_VERSION

    @property
    def precision_text(self) -> str:
        """Such as "bfloat16", or "bfloat16, decoder in int4 in groups of 128, by AWQ"."""
        return "; ".join([self.dtype, *(f"{part} in {words}" for part, words in self.precision.items())])

    @property
    def graph_names(self) -> tuple[str, ...]:
        """The vision encoder, then the decoder's stages in order, of one rank after another."""
        return _graph_names(self.stages, self.tensor_parallel)

    def rank_stages(self, num_layers: int) -> tuple[tuple[DecoderStage, ...], ...]:
        """The decoder's graphs: by rank, in order. Args: num_layers: of a decoder that is not cut into stages."""
        return _rank_stages(self.stages or (num_layers,), self.tensor_parallel)

    def records(self) -> tuple[FileRecord, ...]:
        """Every recorded file: graphs, weights, others."""
        return (*self.graphs.values(), *self.weights, *self.files)

    def to_json(self) -> str:
        """Render for `manifest.json`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = MANIFEST_NAME) -> "Manifest":
        """Parse and check a `manifest.json`.

        Raises:
            UserError: no JSON, another format or version, unknown or missing keys, unfitting values; all at once.
        """
        return cls._from_object(parse_json_object(text, source), source)

    @classmethod
    def from_bytes(cls, content: bytes, source: str = MANIFEST_NAME) -> "Manifest":
        """As `from_json`, of a file's bytes."""
        return cls._from_object(json_object_from_bytes(content, source), source)

    @classmethod
    def _from_object(cls, content: dict[str, Any], source: str) -> "Manifest":
        if content.pop("format", None) != FORMAT:
            raise UserError(f'{source} is not a bundle\'s manifest: "format" must be "{FORMAT}".')
        if content.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{source}: format version {content.get('format_version')!r}, this qv-export reads {FORMAT_VERSION}.",
                "Export the checkpoint again, or use the qv-export version that wrote the bundle.",
            )
        problems: list[str] = []
        # Absent in bundles from before there were any.
        given = {"stages": [], "tensor_parallel": 1, "precision": {}, "calibration": None, **content}
        values = read_fields(cls, given, problems, whole=True)
        for needed, contradictions in _CONTRADICTIONS:
            if needed <= values.keys():
                problems += contradictions(**{name: values[name] for name in needed})
        if problems:
            raise UserError(f"{source} is not a valid manifest:\n- " + "\n- ".join(problems))
        return cls(**values)

    def write(self, directory: Path) -> None:
        """Write `manifest.json` so that a reader sees either the old one or the whole new one."""
        replace_text(directory / MANIFEST_NAME, self.to_json())


def _rank_stages(layers: Sequence[int], num_ranks: int) -> tuple[tuple[DecoderStage, ...], ...]:
    ranks = [None] if num_ranks == 1 else range(num_ranks)
    return tuple(decoder_stages(layers, rank) for rank in ranks)


def _graph_names(stages: tuple[int, ...], num_ranks: int) -> tuple[str, ...]:
    return ("vision", *(stage.graph for each in _rank_stages(stages or (1,), num_ranks) for stage in each))


def content_key(parts: Mapping[str, str]) -> str:
    """Hash named parts, in any order, to the 16 hex digits that name a result."""
    canonical = json.dumps(dict(parts), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """Digest of a whole file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _graph_problems(
    graphs: Mapping[str, FileRecord], stages: tuple[int, ...], tensor_parallel: int
) -> Iterator[str]:
    names = _graph_names(stages, tensor_parallel)
    if set(names) != set(graphs):
        yield f"graphs must hold {_joined(names)}"


def _weight_problems(weights: Sequence[FileRecord], weights_mode: str) -> Iterator[str]:
    """Every file is known by its bytes: only weights that are linked were never read as a whole."""
    for record in weights:
        if not _is_digest(record.fingerprint):
            yield f"{record.name}: fingerprint must be a sha256"
        if not _is_digest(record.sha256) and (record.sha256 is not None or weights_mode != "link"):
            yield f"{record.name}: {_NO_DIGEST}"


def _digest_problems(graphs: Mapping[str, FileRecord], files: Sequence[FileRecord]) -> Iterator[str]:
    for record in (*graphs.values(), *files):
        if not _is_digest(record.sha256):
            yield f"{record.name}: {_NO_DIGEST}"


def _name_problems(
    graphs: Mapping[str, FileRecord], weights: Sequence[FileRecord], files: Sequence[FileRecord]
) -> Iterator[str]:
    names = [record.name for record in (*graphs.values(), *weights, *files)]
    twice = {name for name in names if names.count(name) > 1} if len(names) < 10_000 else {"too many files"}
    if twice:
        yield f"files must have different names, found {_listed(twice)} twice"
    if "config.json" not in names:
        yield "files must hold config.json"
    if reserved := [name for name in names if PurePosixPath(name).parts[:1] in _RESERVED]:
        yield f"{_listed(reserved)}: a name that the bundle keeps for itself"


_CONTRADICTIONS: tuple[tuple[frozenset[str], Callable[..., Iterator[str]]], ...] = (
    (frozenset({"graphs", "stages", "tensor_parallel"}), _graph_problems),
    (frozenset({"weights", "weights_mode"}), _weight_problems),
    (frozenset({"graphs", "files"}), _digest_problems),
    (frozenset({"graphs", "weights", "files"}), _name_problems),
)
"""What values, each of its type, say against each other: asked of those that are right, whatever the others are."""
_NO_DIGEST = "sha256 must be one: only linked weights have none"
_RESERVED = ((MANIFEST_NAME,), ("engines",), ("verdicts",))
"""What stands in a bundle without being recorded by its manifest."""


def _is_digest(value: str | None) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _joined(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
