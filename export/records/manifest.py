"""What a bundle writes down about itself, and how a file is recognised again."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from export.contract import decoder_stages
from export.errors import UserError
from export.files.atomic import replace_text
from export.files.json_object import json_object_from_bytes, parse_json_object

FORMAT = "qv-export bundle"
FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
WeightsMode = Literal["copy", "link"]

CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class FileRecord:
    """A file of the bundle: its size and what its bytes were when it was written."""

    name: str
    """Path inside the bundle, with forward slashes."""
    bytes: int
    sha256: str | None
    """Digest of the whole file; None for linked weights, which are never read as a whole."""
    fingerprint: str | None = None
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
    weights_mode: str
    graphs: Mapping[str, FileRecord]
    """By role: "vision", and "decoder" or its stages "decoder.0", "decoder.1" ..., in order."""
    weights: tuple[FileRecord, ...]
    files: tuple[FileRecord, ...]
    """Configuration, tokenizer and processor files."""
    key: str
    """`content_key` of everything that could change what the graphs compute."""
    stages: tuple[int, ...] = ()
    """How many layers each stage of the decoder has; empty for a decoder in one graph."""
    format_version: int = FORMAT_VERSION

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
                f"{source}: format version {content.get('format_version')!r}, this qv-export reads {FORMAT_VERSION}. "
                "Export the checkpoint again, or use the qv-export version that wrote the bundle."
            )
        return _ManifestReader(source).manifest(content)

    def write(self, directory: Path) -> None:
        """Write `manifest.json` so that a reader sees either the old one or the whole new one."""
        replace_text(directory / MANIFEST_NAME, self.to_json())


def content_key(parts: Mapping[str, str]) -> str:
    """Hash named parts, in any order, to the 16 hex digits that name a result."""
    canonical = json.dumps(dict(parts), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """Digest of a whole file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _ManifestReader:
    """Turns parsed JSON into a Manifest and collects every problem on the way."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[str] = []

    def manifest(self, content: dict[str, Any]) -> Manifest:
        content = {"stages": [], **content}  # absent in bundles from before there were stages
        self.keys(content, Manifest, "manifest")
        graphs = self.mapping(content.get("graphs"), "graphs")
        tools = self.mapping(content.get("tools"), "tools")
        source = self.mapping(content.get("source"), "source")
        self.keys(source, Source, "source")
        manifest = Manifest(
            qv_export_version=self.text(content, "qv_export_version"),
            created=self.text(content, "created"),
            tools={name: self.text(tools, name) for name in tools},
            source=Source(self.text(source, "name"), self.text(source, "config_sha256")),
            dtype=self.text(content, "dtype"),
            weights_mode=self.text(content, "weights_mode"),
            graphs={role: self.record(entry, f"graphs.{role}") for role, entry in graphs.items()},
            weights=self.file_records(content.get("weights"), "weights"),
            files=self.file_records(content.get("files"), "files"),
            key=self.text(content, "key"),
            stages=self.counts(content.get("stages"), "stages"),
        )
        self.require(manifest.weights_mode in {"copy", "link"}, "weights_mode must be copy or link")
        expected = ["vision", *(stage.graph for stage in decoder_stages(manifest.stages or (1,)))]
        self.require(set(expected) == set(graphs), f"graphs must hold {_joined(expected)}")
        self.digests(manifest)
        self.names([record.name for record in manifest.records()])
        if self.problems:
            raise UserError(f"{self.source} is not a valid manifest:\n- " + "\n- ".join(self.problems))
        return manifest

    def keys(self, content: Mapping[str, Any], kind: type, where: str) -> None:
        known = {field.name for field in fields(kind)}
        self.require(not set(content) - known, f"{where}: unknown keys {_listed(set(content) - known)}")
        self.require(not known - set(content), f"{where}: missing keys {_listed(known - set(content))}")

    def require(self, condition: bool, problem: str) -> None:
        if not condition:
            self.problems.append(problem)

    def mapping(self, value: Any, where: str) -> Mapping[str, Any]:
        self.require(isinstance(value, dict), f"{where} must be an object, found {value!r}")
        return value if isinstance(value, dict) else {}

    def text(self, content: Mapping[str, Any], key: str) -> str:
        value = content.get(key)
        self.require(isinstance(value, str), f"{key} must be a string, found {value!r}")
        return str(value)

    def counts(self, value: Any, where: str) -> tuple[int, ...]:
        is_sound = isinstance(value, list) and all(type(count) is int and count > 0 for count in value)
        self.require(
            is_sound and len(value) != 1, f"{where} must be a list of numbers of layers, found {value!r}"
        )
        return tuple(value) if is_sound else ()

    def file_records(self, value: Any, where: str) -> tuple[FileRecord, ...]:
        self.require(isinstance(value, list), f"{where} must be a list, found {value!r}")
        entries = value if isinstance(value, list) else []
        return tuple(self.record(entry, f"{where}[{index}]") for index, entry in enumerate(entries))

    def digests(self, manifest: Manifest) -> None:
        """Every file is known by its bytes: only weights that are linked were never read as a whole."""
        for record in manifest.weights:
            self.require(_is_digest(record.fingerprint), f"{record.name}: fingerprint must be a sha256")
            self.require(
                _is_digest(record.sha256) or (record.sha256 is None and manifest.weights_mode == "link"),
                f"{record.name}: sha256 must be one: only linked weights have none",
            )
        for record in (*manifest.graphs.values(), *manifest.files):
            self.require(
                _is_digest(record.sha256), f"{record.name}: sha256 must be one: only linked weights have none"
            )

    def names(self, names: list[str]) -> None:
        twice = (
            {name for name in names if names.count(name) > 1} if len(names) < 10_000 else {"too many files"}
        )
        self.require(not twice, f"files must have different names, found {_listed(twice)} twice")
        self.require("config.json" in names, "files must hold config.json")
        reserved = [name for name in names if PurePosixPath(name).parts[:1] in _RESERVED]
        self.require(not reserved, f"{_listed(reserved)}: a name that the bundle keeps for itself")

    def record(self, value: Any, where: str) -> FileRecord:
        entry = self.mapping(value, where)
        self.keys(entry, FileRecord, where)
        name, size = entry.get("name"), entry.get("bytes")
        self.require(_is_inside(name), f"{where}.name must be a path inside the bundle, found {name!r}")
        self.require(type(size) is int and size >= 0, f"{where}.bytes must be a size, found {size!r}")
        for digest in ("sha256", "fingerprint"):
            value = entry.get(digest)
            self.require(
                value is None or isinstance(value, str), f"{where}.{digest} must be a string or null"
            )
        return FileRecord(
            str(name), size if type(size) is int else 0, entry.get("sha256"), entry.get("fingerprint")
        )


_RESERVED = ((MANIFEST_NAME,), ("engines",), ("verdicts",))
"""What stands in a bundle without being recorded by its manifest."""


def _is_digest(value: str | None) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_inside(name: Any) -> bool:
    if not isinstance(name, str) or not name or "\\" in name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.parts != ()


def _joined(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
