"""Two reports side by side: whether they speak of the same, and which figures are worse by more than a stated loss."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from engines.bench.report import BenchReport, BenchRow, BenchSubject
from export.errors import UserError

Verdict = Literal["better", "same", "worse", "LOSS", "MISSING"]


@dataclass(frozen=True)
class Comparison:
    """One figure, then and now."""

    section: str
    case: str
    verdict: Verdict
    before: BenchRow
    now: BenchRow | None
    """None: it was not measured this time."""

    @property
    def loss(self) -> float | None:
        """How much worse it is, as a share of what it was; below 0: better."""
        if self.now is None or not self.before.median or not self.now.median:
            return None
        ratio = self.now.median / self.before.median
        return (1 / ratio if self.now.more_is_better else ratio) - 1


def require_comparable(before: BenchSubject, now: BenchSubject) -> None:
    """Refuse to compare what was measured of something else, or somewhere else.

    Raises:
        UserError: every difference.
    """
    then, here = asdict(before), asdict(now)
    found = [
        f"{name}: {then[name]!r} there, {here[name]!r} here" for name in then if then[name] != here[name]
    ]
    if found:
        raise UserError(
            "The other report speaks of something else, so a difference would say nothing about a change:\n- "
            + "\n- ".join(found),
            "Measure both on one machine with the same options, or say --compare-anyway.",
        )


def compare(before: BenchReport, now: BenchReport, most_loss: float) -> list[Comparison]:
    """Every figure of an older report beside the new one's.

    A figure is lost when its median is worse by more than `most_loss` and the middle halves of both reports' samples
    do not overlap: within its own noise nothing is a loss. One that the older report has and this run, of the same
    section, could not measure is missing.

    Args:
        before: the older report.
        now: the new one.
        most_loss: a share, 0.1 for ten percent.
    """
    found = {row.name: row for row in now.rows}
    return [
        _comparison(row, found.get(row.name), most_loss) for row in before.rows if row.section in now.sections
    ]


def losses(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """What a gate must not let through."""
    return [one for one in comparisons if one.verdict in {"LOSS", "MISSING"}]


def new_rows(before: BenchReport, now: BenchReport) -> Iterator[BenchRow]:
    """Figures that the older report does not have."""
    known = {row.name for row in before.rows}
    return (row for row in now.rows if row.name not in known)


def _comparison(before: BenchRow, now: BenchRow | None, most_loss: float) -> Comparison:
    if now is None:
        return Comparison(before.section, before.case, "MISSING", before, None)
    undecided = Comparison(before.section, before.case, "same", before, now)
    loss = undecided.loss
    if loss is None or (now.low <= before.high and before.low <= now.high):
        return undecided
    verdict: Verdict = "better" if loss < 0 else "LOSS" if loss > most_loss else "worse"
    return Comparison(before.section, before.case, verdict, before, now)
