"""The result of a validation: one object, from which JSON, HTML, JUnit XML and Markdown are rendered."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from export.files.directory_swap import DirectoryKind
from export.records.verdicts import LevelName, Verdict
from validate.bisect.search import Divergence
from validate.cases.builtin import PAST_THE_EDGE
from validate.gates.gates import GateResult, GateSettings, gate_kind, worst_failures
from validate.records.records import Measurement
from validate.tasks.cost import QuantizationCost
from validate.tasks.quality import TaskQuality

FORMAT = "qv-export validation"
FORMAT_VERSION = 3
REPORT_NAME = "report.json"
REPORT_DIRECTORY = DirectoryKind(
    "a report", lambda path: (path / REPORT_NAME).is_file(), "Free some, and go on with --resume"
)

Status = Literal["pass", "fail", "outside_profile"]


@dataclass(frozen=True)
class CaseReport:
    """One case: what was measured, what noise allows, what the gates say."""

    name: str
    status: Status
    problem: str
    """Why it is outside of the profile, or what the engine raised; empty otherwise."""
    prompt_tokens: tuple[int, ...]
    num_patches: int
    measured: Measurement | None
    noise: Measurement | None
    gates: tuple[GateResult, ...]

    @property
    def worst_ratio(self) -> float | None:
        """The largest share of an allowed error; above 1 fails."""
        ratios = [gate.ratio for gate in self.gates if gate.ratio is not None]
        return max(ratios, default=None)


@dataclass(frozen=True)
class Subject:
    """What was validated, against what."""

    bundle: str
    bundle_key: str
    source: str
    graph_dtype: str
    engine: str
    engine_key: str
    digests: Mapping[str, str]
    """sha256 of every file of weights and of the engine, by path inside the bundle."""
    engine_dtype: str
    reference: str
    level: LevelName
    num_decode_steps: int
    profile: Mapping[str, int | None]
    is_narrow: bool
    """Smaller shapes were asked than usual."""


@dataclass(frozen=True)
class RunFacts:
    """Where and how long: the only part that differs when a run is repeated."""

    created: str
    seconds: float
    peak_memory_bytes: int
    versions: Mapping[str, str]
    resumed: bool


@dataclass(frozen=True)
class Report:
    """The whole result."""

    subject: Subject
    weights: GateResult
    gate_settings: GateSettings
    noise_floors: Mapping[str, float]
    cases: tuple[CaseReport, ...]
    properties: tuple[GateResult, ...]
    properties_outside: Mapping[str, str]
    """Why a property could not be asked of this engine, by name."""
    options_that_hold: Mapping[str, int]
    """Options of `build`, by name, for an engine that takes every case; those alone in which this one has less."""
    depth: tuple[GateResult, ...]
    divergence: Divergence | None
    """Error by depth on a failing case, or on the probe where none failed; None where the engine cannot be looked into,
    or where the golden set does not know its inside."""
    task_quality: TaskQuality | None
    machine: RunFacts
    quantization_cost: QuantizationCost | None = None
    """What quantizing the weights cost; None: it was not asked."""

    def outside_sentence(self) -> str | None:
        """Which cases the engine's limits cannot hold, and the options that would; None where every one was asked."""
        names = [case.name for case in self.cases if case.status == "outside_profile"]
        missed = [name for name in names if not name.startswith(PAST_THE_EDGE)]
        if not missed:
            return None
        options = " ".join(f"--{name.replace('_', '-')} {n}" for name, n in self.options_that_hold.items())
        return (
            f"{len(missed)} of {len(self.cases)} cases are larger than this engine takes, and were not asked: "
            f"{', '.join(missed)}. An engine built with {options} takes them."
        )

    @property
    def gates(self) -> tuple[GateResult, ...]:
        quality = () if self.task_quality is None else (self.task_quality.gate,)
        of_cases = tuple(gate for case in self.cases for gate in case.gates)
        cost = () if self.quantization_cost is None else self.quantization_cost.gates
        return (self.weights, *of_cases, *self.properties, *self.depth, *quality, *cost)

    @property
    def failures(self) -> list[GateResult]:
        return worst_failures(self.gates)

    @property
    def passed(self) -> bool:
        """Something was judged, and nothing failed."""
        return bool(self.gates) and not self.failures

    def verdict(self) -> Verdict:
        """What the bundle keeps."""
        return Verdict(
            engine_key=self.subject.engine_key,
            target=self.subject.engine,
            level=self.subject.level,
            passed=self.passed,
            gates_digest=self.gate_settings.digest(),
            gate_kind=gate_kind(self.gate_settings, self.gates),
            multiple=self.gate_settings.multiple,
            is_narrow=self.subject.is_narrow,
            num_gates=len(self.gates),
            num_failed=len(self.failures),
            bundle_key=self.subject.bundle_key,
            digests=dict(self.subject.digests),
            created=self.machine.created,
            versions=dict(self.machine.versions),
        )

    def to_json(self) -> dict[str, Any]:
        """Standard JSON: numbers that are not finite become strings."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "verdict": self.verdict().to_json(),
            "failures": [asdict(gate) for gate in self.failures],
            "first_divergence": self._first_divergence(),
            **asdict(self),
        }
        finite: dict[str, Any] = _finite(content)
        return finite

    def _first_divergence(self) -> dict[str, Any] | None:
        if self.divergence is None or self.divergence.first is None:
            return None
        stage, error = self.divergence.first
        return {"case": self.divergence.case, "stage": stage, **asdict(error)}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
