"""A benchmark's figures as tables: measured ones, and two reports side by side."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from qv_export.show.tables import Table

if TYPE_CHECKING:
    from engines.bench.compare import Comparison
    from engines.bench.report import BenchReport, BenchRow

_COLUMNS = ("", "median", "middle half of the samples", "samples", "rate", "of the limit")
_COMPARED = ("", "before", "now", "loss", "")


def report_tables(report: "BenchReport") -> Iterator[Table]:
    """One for each section, and one of what was left out."""
    for section in report.sections:
        rows = [row for row in report.rows if row.section == section]
        if rows:
            yield _without_empty_columns(Table(section, _COLUMNS, tuple(map(_cells, rows))))
    if report.ceilings:
        limits = tuple((one.kind, _rate(one.kind, one.per_second), one.how) for one in report.ceilings)
        yield Table("what this machine reached", ("", "", "how"), limits)
    if report.left_out:
        yield Table(
            "left out",
            ("", "why"),
            tuple((f"{one.section}, {one.case}", one.reason) for one in report.left_out),
        )


def comparison_table(comparisons: Sequence["Comparison"]) -> Table:
    """Then and now."""
    rows = (
        (
            f"{one.section}, {one.case}",
            _value(one.before.median, one.before.unit),
            "not measured" if one.now is None else _value(one.now.median, one.now.unit),
            "" if one.loss is None else f"{one.loss:+.1%}",
            one.verdict,
        )
        for one in comparisons
    )
    return Table("compared", _COMPARED, tuple(rows))


def subject_line(report: "BenchReport") -> str:
    """Where and of what the figures are, which mean nothing without it."""
    subject = report.subject
    threads = "" if subject.num_threads is None else f", --threads {subject.num_threads}"
    threads += "" if subject.num_ranks is None else f", --ranks {subject.num_ranks}"
    where = "; ".join(subject.gpus) if subject.gpus else f"{subject.cpu}, {subject.num_cores} cores"
    engine = f"{subject.target} {subject.library}, {subject.engine}"
    slots = f"{subject.num_slots} slots of {subject.capacity} tokens{threads}"
    load = f"load {report.load_before:g} to {report.load_after:g}"
    return f"{report.created} · {where} · {load} · {engine} · {slots}"


def _without_empty_columns(table: Table) -> Table:
    kept = [0, *(i for i in range(1, len(table.columns)) if any(row[i] for row in table.rows))]
    return Table(
        table.title,
        tuple(table.columns[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in table.rows),
    )


def _cells(row: "BenchRow") -> tuple[str, ...]:
    share = "" if row.share is None else f"{row.share:.0%} of {row.share_of}"
    return (
        row.case,
        _value(row.median, row.unit),
        f"{_number(row.low)} to {_number(row.high)}" if row.num_samples > 1 else "",
        str(row.num_samples) if row.num_samples > 1 else "",
        "" if row.rate is None else _value(row.rate, row.rate_unit),
        share,
    )


def _rate(kind: str, per_second: float) -> str:
    return _value(per_second / 1e9, "GB/s read and written" if kind == "copy" else "GFLOP/s")


def _value(value: float, unit: str) -> str:
    return f"{_number(value)} {unit}"


def _number(value: float) -> str:
    """Three figures."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")
