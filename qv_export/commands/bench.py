"""`qv-export bench`: how fast a bundle's engine is on this machine, and whether it was faster before."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.bench.sections import SECTIONS
from export.errors import UserError
from qv_export.parameters import TargetChoice, rank_options
from qv_export.process import ExitCode
from qv_export.show.console import note, phase_bar, print_json, print_table

if TYPE_CHECKING:
    from engines.bench.compare import Comparison
    from engines.bench.report import BenchReport


@click.command(short_help="Measure a bundle's engine on this machine.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", type=TargetChoice(), help="What computes. Default: onnxruntime, on the CPU.")
@click.option("--engine", "engine_key", metavar="KEY", help="This very engine, in place of a target.")
@click.option(
    "--slots", "num_slots", type=click.IntRange(min=1), help="KV slots. Default: 8, or the engine's."
)
@click.option("--max-context", type=click.IntRange(min=2), help="Tokens in one slot. Default: as `serve`.")
@click.option("--threads", "num_threads", type=click.IntRange(min=1), help="CPU threads. Default: all cores.")
@rank_options
@click.option(
    "--only",
    "sections",
    multiple=True,
    type=click.Choice(SECTIONS),
    help="This section alone; may be repeated. Default: all.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, max=600),
    default=1.0,
    show_default=True,
    help="How long each figure is measured, three samples at least.",
)
@click.option(
    "--clients",
    "num_clients",
    multiple=True,
    type=click.IntRange(min=1),
    help="How many ask at the same time; may be repeated. Default: one, and as many as there are slots.",
)
@click.option(
    "--new-tokens",
    "num_new_tokens",
    type=click.IntRange(min=2),
    help="Of each answer of serving. Default: 32.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report, JSON, which --compare reads.",
)
@click.option(
    "--compare",
    "other",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An older report: exit code 1 where a figure is worse by more than --max-loss and by more than its own noise.",
)
@click.option(
    "--max-loss",
    type=click.FloatRange(min=0),
    metavar="PERCENT",
    help="What --compare lets through. Default: 10.",
)
@click.option("--compare-anyway", is_flag=True, help="Although machine, engine or settings are others.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, the report of -o with what was compared."
)
def bench(
    bundle: Path,
    target: str | None,
    engine_key: str | None,
    num_slots: int | None,
    max_context: int | None,
    num_threads: int | None,
    num_ranks: int | None,
    hostfile: Path | None,
    sections: tuple[str, ...],
    seconds: float,
    num_clients: tuple[int, ...],
    num_new_tokens: int | None,
    output: Path | None,
    other: Path | None,
    max_loss: float | None,
    compare_anyway: bool,
    as_json: bool,
) -> None:
    """Measure BUNDLE's engine here: each part alone, clients that ask at the same time, and memory.

    A figure is the median of its samples, with the middle half of them beside it.
    """
    from engines.bench.compare import compare, losses
    from engines.bench.report import read_report
    from qv_export import api

    if other is None and (max_loss is not None or compare_anyway):
        raise UserError("--max-loss and --compare-anyway go with --compare OTHER.json.", "Give that too.")
    if target and engine_key:
        raise UserError("--engine names an engine, and with it what computes: give it or --target, not both.")
    if output is not None and not output.absolute().parent.is_dir():
        raise UserError(
            f"{output} cannot be written: {output.absolute().parent} is no folder.", "Make it first."
        )
    before = None if other is None else read_report(other)
    with phase_bar() as progress:
        report = api.bench(
            bundle,
            engine_key or target,
            sections=sections,
            seconds=seconds,
            num_slots=num_slots,
            max_context=max_context,
            num_threads=num_threads,
            num_ranks=num_ranks,
            hostfile=hostfile,
            num_clients=num_clients,
            num_new_tokens=num_new_tokens,
            before=None if compare_anyway else before,
            progress=progress,
        )
    if output is not None:
        _write(output, report)
    compared = (
        None if before is None else compare(before, report, (10.0 if max_loss is None else max_loss) / 100)
    )
    _tell(report, compared, as_json=as_json)
    if compared is not None and (lost := losses(compared)):
        names = "".join(f"\n- {one.section}, {one.case}" for one in lost)
        note(f"{len(lost)} of {len(compared)} figures are lost:{names}")
        raise SystemExit(ExitCode.GATE_FAILED)


def _write(output: Path, report: "BenchReport") -> None:
    from export.files.atomic import replace_text

    try:
        replace_text(output, report.to_json())
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}.") from None


def _tell(report: "BenchReport", compared: "list[Comparison] | None", *, as_json: bool) -> None:
    from dataclasses import asdict

    from qv_export.show.bench import comparison_table, report_tables, subject_line

    if as_json:
        content: dict[str, Any] = asdict(report)
        if compared is not None:
            content["compared"] = [
                {"section": one.section, "case": one.case, "verdict": one.verdict, "loss": one.loss}
                for one in compared
            ]
        print_json(content)
        return
    note(subject_line(report))
    for table in report_tables(report):
        print_table(table.title, table.columns, table.rows)
    if compared is not None:
        table = comparison_table(compared)
        print_table(table.title, table.columns, table.rows)
