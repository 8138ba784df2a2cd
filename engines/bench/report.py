"""What a benchmark measured, on which machine and engine: rows, what was left out, and both as JSON and back."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from engines.backends.ceilings import Ceiling
from export.errors import UserError
from export.files.json_fields import dataclass_from_json
from export.files.json_object import read_json_object

VERSION = 1


@dataclass(frozen=True)
class BenchRow:
    """One figure: the median of its samples, and the quartiles around it."""

    section: str
    case: str
    """What was measured. Two reports speak of the same where section and case are the same."""
    median: float
    low: float
    high: float
    unit: str
    """`ms`, `tokens/s` or `MB`."""
    num_samples: int
    more_is_better: bool = False
    rate: float | None = None
    """What the median means per second, in `rate_unit`."""
    rate_unit: str = ""
    share: float | None = None
    """Of the measured limit of `share_of`, from 0 to 1."""
    share_of: str = ""
    """`copy` (memory bandwidth) or `matmul`: whichever bounds such a call."""

    @property
    def name(self) -> str:
        return f"{self.section}, {self.case}"


@dataclass(frozen=True)
class LeftOut:
    """What was not measured, and why."""

    section: str
    case: str
    reason: str


@dataclass(frozen=True)
class BenchSubject:
    """What was measured, and where: reports of different subjects mean different things."""

    cpu: str
    num_cores: int
    gpus: tuple[str, ...]
    """Name and driver of each."""
    target: str
    library: str
    """Version of the target's library."""
    engine: str
    """Its key; where the backend opens the graphs themselves, words that say so: the bundle's key tells which."""
    bundle: str
    """The bundle's key."""
    num_slots: int
    capacity: int
    num_threads: int | None = None
    num_ranks: int | None = None


@dataclass(frozen=True)
class BenchReport:
    """A whole run."""

    version: int
    created: str
    """ISO 8601, UTC."""
    qv_export: str
    subject: BenchSubject
    sections: tuple[str, ...]
    load_before: float
    """Processes that wanted a core in the minute before (load average): what else this machine was doing."""
    load_after: float
    ceilings: tuple[Ceiling, ...]
    rows: tuple[BenchRow, ...]
    left_out: tuple[LeftOut, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


def read_report(path: Path) -> BenchReport:
    """Read what `to_json` wrote.

    Raises:
        UserError: the file cannot be read, or is no report of this version.
    """
    content = read_json_object(path)
    if content.get("version") != VERSION:
        raise UserError(
            f"{path} is no report of `qv-export bench` that this version reads: expected version {VERSION}, found "
            f"{content.get('version')!r:.40}.",
            "Measure again, and keep the file that -o writes.",
        )
    try:
        return dataclass_from_json(BenchReport, content, str(path))
    except UserError as error:
        raise UserError(f"{error}\nMeasure again, and keep the file that -o writes.") from None
