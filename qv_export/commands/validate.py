"""`qv-export validate`: whether an engine computes what the model means."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.dtypes import GRAPH_DTYPES
from export.errors import UserError
from export.wording import command_line, size_text
from qv_export import api
from qv_export.parameters import TargetChoice, default_target, device_option
from qv_export.show.console import note, print_json, progress_bar

if TYPE_CHECKING:
    from export.records.verdicts import LevelName
    from validate.report.report import Report
    from validate.run.plan import Plan, Progress

GATE_FAILED = 1


@click.command("validate", short_help="Prove a bundle against the PyTorch reference.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--report",
    "report_directory",
    type=click.Path(path_type=Path),
    help="Directory for report.html, report.json, junit.xml and summary.md; an older report there is replaced whole.",
)
@click.option(
    "--target",
    type=TargetChoice(with_reference=True),
    default=default_target,
    show_default="onnxruntime, on the CPU",
    help="The engine under test. torch is the reference itself, in --dtype.",
)
@click.option(
    "--engine", "engine_key", metavar="KEY", help="This very engine of the bundle, in place of a target."
)
@click.option(
    "--dtype",
    type=click.Choice(GRAPH_DTYPES),
    help="What a torch target computes in. Default: the graphs' dtype. Other targets have only one.",
)
@click.option(
    "--level",
    type=click.Choice(["quick", "standard", "exhaustive"]),
    default="standard",
    show_default=True,
    help="How many cases.",
)
@click.option(
    "--cases",
    type=click.Path(exists=True, path_type=Path),
    help="Your own as well: a JSON file of conversations, or a folder of pictures.",
)
@click.option(
    "--gates",
    "gates_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML with `multiple` and fixed [limits] that replace what noise allows.",
)
@click.option(
    "--record",
    "record_directory",
    type=click.Path(path_type=Path),
    help="Only write what the reference says there: a golden set, for machines that cannot hold the reference.",
)
@click.option(
    "--polygraphy",
    "for_polygraphy",
    is_flag=True,
    help="With --record: also what NVIDIA's `polygraphy run` compares a vision engine with.",
)
@click.option(
    "--against",
    "golden",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Compare with a golden set instead of the reference.",
)
@click.option(
    "--tasks",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Questions with answers (.jsonl of image, prompt, answer): accuracy of reference and engine.",
)
@click.option(
    "--unquantized",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With --tasks: the checkpoint (or its bundle) before its weights were quantized, to say what that cost.",
)
@click.option(
    "--self-test",
    is_flag=True,
    help="Put known faults into the engine instead, one at a time, and say which ones the gates notice.",
)
@device_option
@click.option("--max-context", type=click.IntRange(min=64), help="Tokens of a KV slot. Default: 1024.")
@click.option("--max-patches", type=click.IntRange(min=16), help="Patches of a vision call. Default: 2048.")
@click.option("--max-batch", type=click.IntRange(min=1), help="Prompts of a decoder call. Default: 4.")
@click.option(
    "--resume", is_flag=True, help="Go on with the run that was interrupted before its report was written."
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as one JSON object.")
@click.pass_context
def validate_command(
    ctx: click.Context,
    /,
    bundle: Path,
    report_directory: Path | None,
    target: str,
    engine_key: str | None,
    dtype: str | None,
    level: "LevelName",
    cases: Path | None,
    gates_file: Path | None,
    record_directory: Path | None,
    for_polygraphy: bool,
    golden: Path | None,
    tasks: Path | None,
    unquantized: Path | None,
    self_test: bool,
    device: str | None,
    resume: bool,
    as_json: bool,
    **profile: int | None,
) -> None:
    """Compare an engine of BUNDLE with the PyTorch reference.

    Passes when no token's error exceeds a multiple of the noise of the engine's own dtype. Exit code 0: pass, 1: fail.
    The verdict is kept in the bundle, under the engine's key.
    """
    require_one_purpose(report_directory, record_directory, for_polygraphy, self_test)
    if golden is not None and (tasks is not None or record_directory is not None):
        raise UserError(
            "--against replaces the reference, which --tasks and --record need.", "Leave one out."
        )
    if unquantized is not None and tasks is None:
        raise UserError("--unquantized is asked the questions of --tasks.", "Give those too.")
    choices: dict[str, Any] = {**profile, "dtype": dtype, "cases": cases, "golden": golden, "tasks": tasks}
    choices |= {"unquantized": unquantized, "device": device}
    if self_test or record_directory is not None:
        from validate.run.plan import make_plan

        plan_level = "quick" if self_test else level
        plan = make_plan(
            api.as_bundle(bundle), engine_key or target, plan_level, gates_file=gates_file, **choices
        )
        if record_directory is None:
            ctx.exit(0 if show_self_test(plan, as_json) else GATE_FAILED)
        record(plan, record_directory, for_polygraphy, as_json)
        return
    assert report_directory is not None
    with progress_bar() as bar:
        report = api.validate(
            bundle,
            engine_key or target,
            level=level,
            report=report_directory,
            gates=gates_file,
            resume=resume,
            progress=bar,
            **choices,
        )
    if as_json:
        print_json({"report": str(report_directory), **report.verdict().to_json()})
    note(validation_summary(report, report_directory))
    if not report.passed:
        ctx.exit(GATE_FAILED)


def require_one_purpose(
    report: Path | None, golden_set: Path | None, for_polygraphy: bool, self_test: bool
) -> None:
    """Refuse a command that asks for nothing, or for two things at once.

    Raises:
        UserError: with what to give.
    """
    if self_test and (report is not None or golden_set is not None):
        raise UserError(
            "--self-test tries the gates and gives no verdict.", "Leave --report and --record out."
        )
    if not self_test and (report is None) == (golden_set is None):
        raise click.UsageError(
            "Give either --report DIR, to validate, or --record DIR, to write a golden set."
        )
    if for_polygraphy:
        from validate.records.polygraphy_files import require_polygraphy

        require_polygraphy()
        if golden_set is None:
            raise UserError("--polygraphy is what --record DIR writes in addition.", "Give that too.")


def show_self_test(plan: "Plan", as_json: bool) -> bool:
    """Run the self-test and say what became of each fault; True if none was let pass."""
    from validate.self_test.run import run_self_test

    with bar() as progress:
        result = run_self_test(plan, progress)
    if as_json:
        print_json(result.to_json())
    lines = [fault.sentence() for fault in result.faults]
    if result.sound_failures:
        lines.append(f"the engine fails without any fault: {', '.join(result.sound_failures)}")
    counts = ", ".join(f"{len(result.named(name))} {name}" for name in ("caught", "missed", "not made"))
    note("\n".join([*lines, f"{'PASS' if result.passed else 'FAIL'}: {counts}"]))
    return result.passed


def record(plan: "Plan", directory: Path, for_polygraphy: bool, as_json: bool) -> None:
    """Write a golden set."""
    from validate.run.pipeline import write_golden
    from validate.run.reference import record_for_polygraphy

    with bar() as progress:
        count = write_golden(plan, directory, progress)
    if for_polygraphy:
        note(f"{record_for_polygraphy(plan, directory)}: what `polygraphy run` loads as inputs and outputs")
    if as_json:
        print_json({"golden": str(directory), "cases": count, **plan.golden_content()})
    command = command_line("validate", plan.bundle.directory, "--against", directory, "--report", "DIR")
    note(f"{directory}: {count} cases. Next: {command}")


@contextmanager
def bar() -> Iterator["Progress"]:
    """A bar with the time left on a terminal, a line for each further tenth in a log, nothing with -q."""
    with progress_bar() as report:
        yield lambda text, done, total: report(text, done / total)


def validation_summary(report: "Report", directory: Path) -> str:
    """The verdict and what failed first, for a person."""
    from validate.report.render import divergence_lines, failure_text, shown_failures

    verdict = "PASS" if report.passed else "FAIL"
    overview = (
        f"{verdict}: {len(report.gates)} gates, {len(report.failures)} failed; {report.machine.seconds:.1f} s, "
        f"peak memory {size_text(report.machine.peak_memory_bytes)}; {directory / 'report.html'}"
    )
    lines = [
        overview,
        *filter(None, [report.outside_sentence()]),
        *([report.task_quality.sentence()] if report.task_quality else []),
        *(report.quantization_cost.sentences() if report.quantization_cost else []),
        *filter(None, divergence_lines(report)),
        *(f"- {failure_text(gate)}" for gate in shown_failures(report)),
    ]
    return "\n".join(lines)
