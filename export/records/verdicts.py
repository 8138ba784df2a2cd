"""Verdicts: what validations said of an engine, kept in the bundle by the engine's key and bound to its bytes.

`BUNDLE/verdicts/<key>.json` holds one verdict for each level and kind of gates, the newest of each, so that a later
quick run does not cost the proof of a standard one, and no target's validation touches another's.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from export.errors import UserError
from export.files.atomic import replace_text
from export.files.json_fields import Check, read_dataclass
from export.files.json_object import read_json_object

FORMAT = "qv-export verdicts"
FORMAT_VERSION = 1
VERDICTS_DIRECTORY = "verdicts"

LevelName = Literal["quick", "standard", "exhaustive"]
LEVELS: tuple[LevelName, ...] = get_args(LevelName)
"""Each holds the cases of the one before."""

GateKind = Literal["default", "stricter", "looser"]


@dataclass(frozen=True)
class Verdict:
    """One validation of one engine."""

    engine_key: str
    """Of the built engine, or of the graphs as a backend opens them."""
    target: str
    """The backend, or what else was validated under its name."""
    level: LevelName
    passed: Annotated[bool, Check("one of True, False")]
    gates_digest: str
    """Of the settings of the gates."""
    gate_kind: GateKind
    """Looser: some gate granted more than the defaults do."""
    multiple: float
    """Of the noise, which the gates granted."""
    is_narrow: Annotated[bool, Check("one of True, False")]
    """Smaller shapes than usual were asked: a larger call is not proven."""
    num_gates: Annotated[int, Check("a number")]
    num_failed: Annotated[int, Check("a number")]
    bundle_key: str
    digests: Annotated[Mapping[str, str], Check("an object of strings")]
    """sha256 of every file of weights and of the engine, by path inside the bundle."""
    created: str
    """UTC, ISO 8601."""
    versions: Annotated[Mapping[str, str], Check("an object of strings")]

    @property
    def is_proof(self) -> bool:
        """Whether it may open the way to a server: passed, thorough enough, by gates that grant no more than usual."""
        is_thorough = LEVELS.index(self.level) >= LEVELS.index("standard")
        return self.passed and is_thorough and self.gate_kind != "looser" and not self.is_narrow

    def to_json(self) -> dict[str, Any]:
        """One entry of the file."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any, source: str) -> "Verdict":
        """Check one entry.

        Raises:
            UserError: unknown or missing keys, values of another kind.
        """
        problems: list[str] = []
        verdict = read_dataclass(cls, content, problems, whole=True)
        if verdict is None:
            raise UserError(
                f"{source} holds an entry that is no verdict of this qv-export:\n- "
                + "\n- ".join(problems)
                + "\nValidate again."
            )
        return verdict


def read_verdicts(bundle: Path, engine_key: str) -> list[Verdict]:
    """Every verdict that is kept for an engine's key, the newest first; none where there was no validation.

    Raises:
        UserError: the file is not one that this qv-export wrote.
    """
    path = _path(bundle, engine_key)
    if not path.is_file():
        return []
    content = read_json_object(path)
    if content.get("format") != FORMAT or content.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} holds no verdicts that this qv-export reads.", "Remove it, and validate again."
        )
    entries = content.get("verdicts")
    verdicts = [Verdict.from_json(entry, str(path)) for entry in entries] if isinstance(entries, list) else []
    if any(verdict.engine_key != engine_key for verdict in verdicts):
        raise UserError(f"{path} holds verdicts of another engine.", "Remove it, and validate again.")
    return sorted(verdicts, key=lambda verdict: verdict.created, reverse=True)


def all_verdicts(bundle: Path) -> list[Verdict]:
    """Every verdict of a bundle that can be read, by key, the newest of each first."""
    found = []
    for path in sorted((bundle / VERDICTS_DIRECTORY).glob("[!.]*.json")):
        try:
            found += read_verdicts(bundle, path.stem)
        except UserError:
            continue
    return found


def keep_verdict(bundle: Path, verdict: Verdict) -> None:
    """Add a verdict to those of its engine, in place of an older one of its level and kind of gates.

    Raises:
        OSError: the bundle cannot be written.
    """
    try:
        kept = read_verdicts(bundle, verdict.engine_key)
    except UserError:
        kept = []
    others = [old for old in kept if _kind(old) != _kind(verdict) and old.bundle_key == verdict.bundle_key]
    _write(_path(bundle, verdict.engine_key), [verdict, *others])


def _kind(verdict: Verdict) -> tuple[str, str, bool]:
    return verdict.level, verdict.gate_kind, verdict.is_narrow


def _path(bundle: Path, engine_key: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", engine_key):
        raise UserError(
            f"{engine_key!r} is no key of an engine: 16 hexadecimal digits, as `inspect` lists them."
        )
    return bundle / VERDICTS_DIRECTORY / f"{engine_key}.json"


def _write(path: Path, verdicts: Iterable[Verdict]) -> None:
    """A reader sees either the old file or the whole new one."""
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "verdicts": [verdict.to_json() for verdict in verdicts],
    }
    path.parent.mkdir(exist_ok=True)
    replace_text(path, json.dumps(content, indent=2) + "\n")
