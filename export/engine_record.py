"""What a built engine writes down about itself, and what of it is checked when it is read.

`engine.json` stands beside the engine files and is the only thing that `build --check`, `inspect` and the check before
loading read: no engine has to be deserialized, which a machine without a GPU could not do.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from export.errors import UserError
from export.json_object import parse_json_object
from export.manifest import FileRecord, sha256_of

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
    """By graph, "vision" and "decoder": what the builder reported."""
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
        names = {field.name for field in fields(cls)}
        try:
            if set(content) != names:
                raise ValueError(f"keys {', '.join(sorted(set(content) ^ names))} are missing or unknown")
            return cls(**{**content, **_typed(content)})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{source} is not a valid engine record: {error}. Build the engine again."
            ) from None

    def changed_files(self, directory: Path, *, read: bool) -> Iterator[str]:
        """What is wrong with the engine's files: missing, of another size and, with `read`, of other content."""
        for record in self.files:
            path = directory / record.name
            if not path.is_file():
                yield f"{record.name} is missing"
            elif path.stat().st_size != record.bytes:
                yield f"{record.name} has {path.stat().st_size} bytes, recorded were {record.bytes}"
            elif read and sha256_of(path) != record.sha256:
                yield f"{record.name} changed since it was built"


def _typed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that JSON has no type for, and a check of the others that are read without a look."""
    if not isinstance(content["target"], str):
        raise ValueError(f"target must be a name, found {content['target']!r}")
    if not all(isinstance(content[name], dict) for name in ("inputs", "limits", "facts")):
        raise ValueError("inputs, limits and facts must be objects")
    files = tuple(FileRecord(**entry) for entry in content["files"])
    if any(Path(record.name).name != record.name for record in files):
        raise ValueError("files must be names inside the engine's directory")
    return {
        "sms": tuple(int(sm) for sm in content["sms"]),
        "plugins": tuple(str(plugin) for plugin in content["plugins"]),
        "files": files,
        "seconds": float(content["seconds"]),
    }


def read_record(directory: Path) -> EngineRecord:
    """Read the record of one engine.

    Raises:
        UserError: no engine there, or an invalid record.
    """
    path = directory / RECORD_NAME
    try:
        return EngineRecord.from_json(path.read_text(encoding="utf-8"), str(path))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{directory} holds no engine: {RECORD_NAME} not found. Make one with `qv-export build`."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
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
