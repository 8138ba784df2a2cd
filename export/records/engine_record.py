"""What a built engine writes down about itself, and what of it is checked when it is read.

`engine.json` stands beside the engine files and is the only thing that `build --check`, `inspect` and the check before
loading read: no engine has to be deserialized, which a machine without a GPU could not do.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from export.errors import UserError
from export.files.checks import is_count
from export.files.json_fields import Check, read_dataclass
from export.files.json_object import parse_json_object
from export.files.untrusted import MAX_JSON_BYTES, read_own_bytes
from export.records.manifest import FileRecord, content_key, sha256_of

FORMAT = "qv-export engine"
FORMAT_VERSION = 1
RECORD_NAME = "engine.json"
ENGINES_DIRECTORY = "engines"
"""Where a bundle keeps what was built from it, one directory a key."""


_Count = Annotated[int, Check("a number of at least 0", is_count)]


def _are_graphs(facts: Mapping[str, Any]) -> bool:
    return all(re.fullmatch(r"vision|decoder(\.\d{1,4})?", name, re.ASCII) for name in facts)


def _are_beside_it(files: Sequence[Mapping[str, Any]]) -> bool:
    """Plain names, and every file known by its bytes."""
    return all(
        Path(file["name"]).name == file["name"]
        and not file["name"].startswith(".")
        and file["sha256"] is not None
        for file in files
    )


@dataclass(frozen=True)
class EngineRecord:
    """One directory of a bundle's `engines/`."""

    key: str
    """Hash of `inputs`; the directory's name."""
    inputs: Annotated[Mapping[str, str], Check("an object of strings")]
    """Everything that could change the bytes, by name."""
    target: Annotated[str, Check("a name")]
    """Name of the backend that built it."""
    sms: Annotated[tuple[_Count, ...], Check("a list of architectures")]
    """Architectures it runs on, compute capability x 10; none for ONNX Runtime."""
    limits: Annotated[Mapping[str, _Count], Check("an object of numbers")]
    plugins: Annotated[tuple[str, ...], Check("a list of names")]
    """Plugins inside, as `namespace::Name/version`."""
    driver: Annotated[str | None, Check("a version or null")]
    """NVIDIA's driver where it was built; None without a GPU."""
    created: Annotated[str, Check("a time")]
    seconds: Annotated[float, Check("seconds", lambda seconds: seconds >= 0)]
    files: Annotated[
        tuple[FileRecord, ...], Check("a list of files inside the engine's directory", _are_beside_it)
    ]
    facts: Annotated[Mapping[str, Mapping[str, Any]], Check("an object by graph", _are_graphs)]
    """By graph, "vision" and "decoder" or its stages: what the builder reported."""
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Render for `engine.json`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = RECORD_NAME) -> "EngineRecord":
        """Parse and check an `engine.json`.

        Raises:
            UserError: another format or version, unknown or missing keys, unfitting values.
        """
        content = parse_json_object(text, source)
        if content.pop("format", None) != FORMAT or content.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f'{source} is no record of an engine that this qv-export reads ("{FORMAT}", version {FORMAT_VERSION}).',
                "Build the engine again.",
            )
        problems: list[str] = []
        record = read_dataclass(cls, content, problems, whole=True)
        if record is None:
            raise UserError(
                f"{source} is not a valid engine record: {'; '.join(problems)}.", "Build the engine again."
            )
        return record

    def contradictions(self) -> list[str]:
        """What the record says of itself that its key does not: each is a reason not to believe any of it."""
        stated = {
            "bundle": self.inputs.get("bundle"),
            "target": self.target,
            "sm": ",".join(map(str, self.sms)),
            **{f"limit {name}": str(value) for name, value in self.limits.items()},
        }
        problems = [
            f"{name} is {value}, its key is of {self.inputs.get(name) or 'none'}"
            for name, value in stated.items()
            if value != self.inputs.get(name)
        ]
        if self.key != content_key(self.inputs):
            problems.insert(0, "its key is not the hash of its inputs")
        return problems

    def changed_files(self, directory: Path, *, read: bool) -> Iterator[str]:
        """What is wrong with the engine's files: missing, of another size and, with `read`, of other content."""
        for record in self.files:
            path = directory / record.name
            if path.is_symlink():
                yield f"{record.name} is a link"
            elif not path.is_file():
                yield f"{record.name} is missing"
            elif path.stat().st_size != record.bytes:
                yield f"{record.name} has {path.stat().st_size} bytes, recorded were {record.bytes}"
            elif read and sha256_of(path) != record.sha256:
                yield f"{record.name} changed since it was built"

    def files_state(self, directory: Path) -> tuple[tuple[int, ...] | None, ...]:
        """Inode, size and times of each file, which change with its bytes; None for one that is missing."""
        states: list[tuple[int, ...] | None] = []
        for record in self.files:
            try:
                found = (directory / record.name).lstat()
            except OSError:
                states.append(None)
            else:
                states.append((found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        return tuple(states)


def read_engine_record(directory: Path) -> EngineRecord:
    """Read the record of one engine.

    Raises:
        UserError: no engine there, or an invalid record.
    """
    path = directory / RECORD_NAME
    if directory.is_symlink():
        raise UserError(f"{directory} is a link: an engine lies inside of its bundle.", "Build it again.")
    try:
        text = read_own_bytes(path, MAX_JSON_BYTES).decode("utf-8")
        return EngineRecord.from_json(text, str(path))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{directory} holds no engine: {RECORD_NAME} not found.", "Make one with `qv-export build`."
        ) from None
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise UserError(f"{path} cannot be read: {error}") from None


def engine_records(bundle: Path) -> dict[str, EngineRecord | UserError]:
    """Every engine of a bundle by its directory's name; the reason for one that cannot be read."""
    found: dict[str, EngineRecord | UserError] = {}
    for directory in sorted((bundle / ENGINES_DIRECTORY).glob("[!.]*")):
        try:
            found[directory.name] = read_engine_record(directory)
        except UserError as error:
            found[directory.name] = error
    return found
