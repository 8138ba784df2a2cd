"""Gates: no more error than a stated multiple of the noise that the engine's dtype already makes.

Noise is measured, not assumed: the reference in the engine's dtype against the reference one precision above, on the
same case (`validate.reference.high_precision`). Metrics know nothing of this; gates know nothing of engines.
"""

import math
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from export.errors import UserError
from export.files.checks import is_number
from export.files.untrusted import read_named_text
from export.records.manifest import content_key
from export.records.verdicts import GateKind
from validate.records.metrics import TensorMetrics
from validate.records.records import Measurement

DEFAULT_MULTIPLE = 4.0
"""Measured: a sound engine's error is about 1 x noise, and 2 at worst over 219 cases of three models; the mildest
fault of the mutation suite is at 34 (`docs/validation.md`)."""


@dataclass(frozen=True)
class GateRule:
    """Which metric of which tensor is judged."""

    tensor: str
    metric: str
    power: int = 1
    """KL divergence grows with the square of an error: its noise is multiplied by the multiple squared."""
    noise_metric: str | None = None
    """Where the noise of the same metric would say nothing; None: the same metric."""

    @property
    def name(self) -> str:
        return f"{self.tensor}.{self.metric}"

    @property
    def is_worst(self) -> bool:
        """Whether one token decides."""
        return self.metric.startswith("worst_")

    def noise(self, metrics: TensorMetrics) -> float:
        return float(getattr(metrics, self.noise_metric or self.metric))


RULES = (
    GateRule("visual_embeds", "worst_token_error"),
    GateRule("visual_embeds", "relative_l2"),
    *(
        rule
        for tensor in ("prefill_logits", "decode_logits")
        for rule in (
            GateRule(tensor, "worst_token_error"),
            GateRule(tensor, "relative_l2"),
            GateRule(tensor, "worst_kl", power=2),
            # Rounding turns near ties. Where logits may be off by e, a likeliest token may lose by 2 e at most.
            GateRule(tensor, "worst_lost_margin", noise_metric="max_abs"),
        )
    ),
)
LOST_MARGIN_FACTOR = 2.0

COST_LIMITS: Mapping[str, float] = {"cost.loss": 0.01, "cost.kl_mean": 0.05}
"""What quantizing may cost by default: a share of right answers that is lost for certain, and nats a token. Sound ways
have 0.003 to 0.025 nats on the small checkpoint; a vision encoder in 4 bits, which loses 6 points, has 0.14."""
COST_GATES = (*COST_LIMITS, "cost.kl_p99", "cost.different_text")
"""Names for `[limits]`; those without a default are judged where a limit is given."""


@dataclass(frozen=True)
class GateSettings:
    """The multiple of noise, and fixed limits that replace it, by gate name."""

    multiple: float = DEFAULT_MULTIPLE
    limits: Mapping[str, float] = field(default_factory=dict)

    def digest(self) -> str:
        """Names these settings."""
        return content_key({"multiple": repr(self.multiple), "limits": repr(sorted(self.limits.items()))})

    @classmethod
    def from_toml(cls, path: Path) -> "GateSettings":
        """Read `multiple` and the table `[limits]`.

        Raises:
            UserError: no readable TOML, unknown keys or gates, values that are no positive numbers; all at once.
        """
        try:
            content = tomllib.loads(read_named_text(path))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be read as TOML: {error}") from None
        limits = content.get("limits", {})
        numbers = {"multiple": content.get("multiple", DEFAULT_MULTIPLE)}
        problems = [
            f"unknown key {key!r}; known are multiple and limits"
            for key in content.keys() - {"multiple", "limits"}
        ]
        if isinstance(limits, dict):
            known = {rule.name for rule in RULES} | set(COST_GATES)
            problems += [
                f"unknown gate {name!r}; known are {', '.join(sorted(known))}"
                for name in limits.keys() - known
            ]
            numbers |= {f"limits.{name}": value for name, value in limits.items()}
        else:
            problems.append("limits must be a table")
        problems += [
            f"{name} must be a positive number, found {value!r}"
            for name, value in numbers.items()
            if not _is_limit(value)
        ]
        if problems:
            raise UserError(f"{path} does not describe gates:\n- " + "\n- ".join(problems))
        return cls(float(numbers["multiple"]), {name: float(value) for name, value in limits.items()})


@dataclass(frozen=True)
class GateResult:
    """One judgement. `subject` is a case or a property."""

    gate: str
    subject: str
    passed: bool
    value: float | None
    limit: float | None
    """None where there is nothing to compare: the engine raised, or answered in another shape."""
    noise: float | None = None
    detail: str = ""

    @property
    def ratio(self) -> float | None:
        """Value over limit: how much of the allowed error is used; above 1 fails."""
        if self.value is None or self.limit is None:
            return None
        if self.limit == 0:
            return 0.0 if self.value == 0 else math.inf
        return self.value / self.limit


def noise_floors(records: Sequence[Measurement]) -> dict[str, float]:
    """The noise that every case is granted, by gate: its own few tokens may have been lucky.

    A mean over tokens varies little, and the median over the cases will do. Which single token is the worst is chance:
    one that multiplies rounding, say by a near tie in sharply peaked attention, does so in one computation and not in
    the next. So a worst token is granted what the worst one of any case had.
    """
    floors = {}
    for rule in RULES:
        noises = [
            rule.noise(record.tensors[rule.tensor]) for record in records if rule.tensor in record.tensors
        ]
        if noises:
            floors[rule.name] = max(noises) if rule.is_worst else statistics.median(noises)
    return floors


def judge_case(
    case: str, measured: Measurement, noise: Measurement, floors: Mapping[str, float], settings: GateSettings
) -> list[GateResult]:
    """Every gate on one case. Values that are not finite fail a gate of their own, by tensor."""
    results = []
    for tensor, metrics in measured.tensors.items():
        count = metrics.num_nonfinite
        results.append(GateResult(f"{tensor}.finite", case, count == 0, float(count), 0.0))
    for rule in RULES:
        if rule.tensor in measured.tensors:
            granted = max(rule.noise(noise.tensors[rule.tensor]), floors[rule.name])
            value = float(getattr(measured.tensors[rule.tensor], rule.metric))
            limit = settings.limits.get(rule.name, allowed(rule, granted, settings.multiple))
            results.append(GateResult(rule.name, case, value <= limit, value, limit, granted))
    return results


def allowed(rule: GateRule, noise: float, multiple: float) -> float:
    """The limit that noise allows."""
    factor = LOST_MARGIN_FACTOR if rule.metric == "worst_lost_margin" else 1.0
    return factor * multiple**rule.power * noise


def gate_kind(settings: GateSettings, results: Sequence[GateResult]) -> GateKind:
    """Whether any judgement granted more than the default settings do.

    A fixed limit is compared with what the default multiple of the noise would have granted in its place.
    """
    rules = {rule.name: rule for rule in RULES}
    is_looser = settings.multiple > DEFAULT_MULTIPLE or any(
        result.limit > allowed(rules[result.gate], result.noise, DEFAULT_MULTIPLE)
        for result in results
        if result.gate in settings.limits and result.limit is not None and result.noise is not None
    )
    is_looser = is_looser or any(
        result.limit > COST_LIMITS[result.gate]
        for result in results
        if result.gate in COST_LIMITS and result.limit is not None
    )
    if is_looser:
        return "looser"
    return "default" if settings == GateSettings() else "stricter"


def worst_failures(results: Sequence[GateResult]) -> list[GateResult]:
    """The failures, worst first."""
    failures = [result for result in results if not result.passed]
    return sorted(failures, key=lambda result: -math.inf if result.ratio is None else -result.ratio)


def _is_limit(value: object) -> bool:
    return is_number(value) and value > 0
