"""What a built engine writes down about itself, and what of it is checked when it is read.

`engine.json` stands beside the engine files and is the only thing that `build --check`, `inspect` and the check before
loading read: no engine has to be deserialized, which a machine without a GPU could not do.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from export.errors import UserError
from export.files.json_object import parse_json_object
from export.files.untrusted import MAX_JSON_BYTES, read_own_bytes
from export.records.manifest import FileRecord, content_key, sha256_of

FORMAT = "qv-export engine"
FORMAT_VERSION = 1
RECORD_NAME = "engine.json"
ENGINES_DIRECTORY = "engines"
"""Where a bundle keeps what was built from it, one directory a key."""


@dataclass(frozen=True)
class EngineRecord:
    """One directory of a bundle's `engines/`."""

    key: str
    """Hash of `inputs`; the directory's name."""
    inputs: Mapping[str, str]
    """Everything that could change the bytes, by name."""
    target: str
    """Name of the backend that built it."""
    sms: tuple[int, ...]
    """Architectures it runs on, compute capability x 10; none for ONNX Runtime."""
    limits: Mapping[str, int]
    plugins: tuple[str, ...]
    """Plugins inside, as `namespace::Name/version`."""
    driver: str | None
    """NVIDIA's driver where it was built; None without a GPU."""
    created: str
    seconds: float
    files: tuple[FileRecord, ...]
    facts: Mapping[str, Any]
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
                f'{source} is no record of an engine that this qv-export reads ("{FORMAT}", version {FORMAT_VERSION}). '
                "Build the engine again."
            )
        if problems := list(_problems(content)):
            raise UserError(
                f"{source} is not a valid engine record: {'; '.join(problems)}. Build the engine again."
            )
        return cls(
            **{
                **content,
                "sms": tuple(content["sms"]),
                "plugins": tuple(content["plugins"]),
                "files": tuple(FileRecord(**entry) for entry in content["files"]),
                "seconds": float(content["seconds"]),
            }
        )

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


def _problems(content: Mapping[str, Any]) -> Iterator[str]:
    """What is not of its type in a parsed record."""
    names = {field.name for field in fields(EngineRecord)}
    if set(content) != names:
        yield f"keys {', '.join(sorted(set(content) ^ names))[:300]} are missing or unknown"
        return
    checks: dict[str, tuple[Callable[[Any], bool], str]] = {
        "key": (_is_text, "a string"),
        "inputs": (lambda value: _is_object_of(value, _is_text), "an object of strings"),
        "target": (_is_text, "a name"),
        "sms": (lambda value: _is_list_of(value, _is_count), "a list of architectures"),
        "limits": (lambda value: _is_object_of(value, _is_count), "an object of numbers"),
        "plugins": (lambda value: _is_list_of(value, _is_text), "a list of names"),
        "driver": (lambda value: value is None or _is_text(value), "a version or null"),
        "created": (_is_text, "a time"),
        "seconds": (lambda value: type(value) in {int, float} and value >= 0, "seconds"),
        "files": (
            lambda value: _is_list_of(value, _is_file),
            "a list of files inside the engine's directory",
        ),
        "facts": (
            lambda value: (
                _is_object_of(value, lambda facts: isinstance(facts, dict)) and all(map(_is_graph, value))
            ),
            "an object by graph",
        ),
    }
    for name, (is_sound, expected) in checks.items():
        if not is_sound(content[name]):
            yield f"{name} must be {expected}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_graph(value: Any) -> bool:
    return _is_text(value) and re.fullmatch(r"vision|decoder(\.\d{1,4})?", value, re.ASCII) is not None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_list_of(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_item, value))


def _is_object_of(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(is_item, value.values()))


def _is_file(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {field.name for field in fields(FileRecord)}
        and _is_text(value["name"])
        and Path(value["name"]).name == value["name"]
        and not value["name"].startswith(".")
        and "\0" not in value["name"]
        and _is_count(value["bytes"])
        and isinstance(value["sha256"], str)
        and (value["fingerprint"] is None or _is_text(value["fingerprint"]))
    )


def read_record(directory: Path) -> EngineRecord:
    """Read the record of one engine.

    Raises:
        UserError: no engine there, or an invalid record.
    """
    path = directory / RECORD_NAME
    if directory.is_symlink():
        raise UserError(f"{directory} is a link: an engine lies inside of its bundle. Build it again.")
    try:
        text = read_own_bytes(path, MAX_JSON_BYTES).decode("utf-8")
        return EngineRecord.from_json(text, str(path))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{directory} holds no engine: {RECORD_NAME} not found. Make one with `qv-export build`."
        ) from None
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise UserError(f"{path} cannot be read: {error}") from None


def engine_records(bundle: Path) -> dict[str, EngineRecord | UserError]:
    """Every engine of a bundle by its directory's name; the reason for one that cannot be read."""
    found: dict[str, EngineRecord | UserError] = {}
    for directory in sorted((bundle / ENGINES_DIRECTORY).glob("[!.]*")):
        try:
            found[directory.name] = read_record(directory)
        except UserError as error:
            found[directory.name] = error
    return found
