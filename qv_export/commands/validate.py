"""`qv-export validate`: does an engine compute what the model means?"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from export.errors import UserError
from qv_export.parameters import TargetChoice, default_target
from qv_export.show.console import note, print_json

if TYPE_CHECKING:
    from validate.cases.builtin import LevelName, Profile
    from validate.report.report import Report
    from validate.run import Plan, Progress

GATE_FAILED = 1
MEASURED_STAYS = "What was measured is kept."


@click.command(short_help="Prove a bundle against the PyTorch reference.")
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
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
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
@click.option("--max-context", type=click.IntRange(min=64), help="Tokens of a KV slot. Default: 1024.")
@click.option("--max-patches", type=click.IntRange(min=16), help="Patches of a vision call. Default: 2048.")
@click.option("--max-batch", type=click.IntRange(min=1), help="Prompts of a decoder call. Default: 4.")
@click.option(
    "--resume", is_flag=True, help="Go on with the run that was interrupted before its report was written."
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as one JSON object.")
@click.pass_context
def validate(
    ctx: click.Context,
    /,
    bundle: Path,
    report_directory: Path | None,
    target: str,
    dtype: str | None,
    level: "LevelName",
    cases: Path | None,
    gates_file: Path | None,
    record_directory: Path | None,
    for_polygraphy: bool,
    golden: Path | None,
    tasks: Path | None,
    resume: bool,
    as_json: bool,
    **profile: int | None,
) -> None:
    """Compare an engine of BUNDLE with the PyTorch reference.

    Passes when no token's error exceeds a multiple of the noise of the engine's own dtype. Exit code 0: pass, 1: fail.
    The verdict is written into the bundle's manifest.
    """
    if (report_directory is None) == (record_directory is None):
        raise UserError("Give either --report DIR, to validate, or --record DIR, to write a golden set.")
    if for_polygraphy:
        from validate.records.polygraphy_files import require_polygraphy

        require_polygraphy()
        if record_directory is None:
            raise UserError("--polygraphy is what --record DIR writes in addition. Give that too.")
    if golden is not None and (tasks is not None or record_directory is not None):
        raise UserError("--against replaces the reference, which --tasks and --record need. Leave one out.")
    plan = make_plan(bundle, (target, dtype), level, make_profile(profile), cases, gates_file, golden, tasks)
    if record_directory is not None:
        record(plan, record_directory, for_polygraphy, as_json)
        return
    assert report_directory is not None
    report = run_plan(plan, report_directory, resume)
    if as_json:
        print_json({"report": str(report_directory), **report.verdict()})
    note(summary(report, report_directory))
    if not report.passed:
        ctx.exit(GATE_FAILED)


def make_profile(options: dict[str, int | None]) -> "Profile":
    from validate.cases.builtin import Profile

    names = {"max_context": "max_context_tokens", "max_patches": "max_patches", "max_batch": "max_batch"}
    return replace(Profile(), **{names[name]: value for name, value in options.items() if value is not None})


def make_plan(
    path: Path,
    target: tuple[str, str | None],
    level_name: "LevelName",
    profile: "Profile",
    cases: Path | None,
    gates_file: Path | None,
    golden: Path | None,
    tasks: Path | None,
) -> "Plan":
    """Read everything that can be wrong before anything takes long. Args: target: with the dtype asked for."""
    from export.bundle import open_bundle
    from validate.cases.builtin import make_level
    from validate.cases.case_files import load_cases
    from validate.cases.prompts import prepare_case
    from validate.gates.gates import GateSettings
    from validate.run import Plan
    from validate.targets import open_target
    from validate.tasks.runs import load_task_set

    bundle = open_bundle(path)
    config, settings = bundle.config, bundle.processor.image_settings
    subject = open_target(target[0], bundle, profile, target[1])
    level = make_level(level_name, subject.engine.profile)
    own = load_cases(cases, bundle.processor) if cases else []
    return Plan(
        bundle=bundle,
        config=config,
        image_settings=settings,
        engine=subject.engine,
        probes=subject.probes,
        level=level.name,
        cases=(*own, *(prepare_case(case, config, settings) for case in level.cases)),
        num_decode_steps=level.num_decode_steps,
        gates=GateSettings.from_toml(gates_file) if gates_file else GateSettings(),
        golden=golden,
        tasks=load_task_set(tasks, path) if tasks else None,
    )


def record(plan: "Plan", directory: Path, for_polygraphy: bool, as_json: bool) -> None:
    """Write a golden set."""
    from export.directory_swap import explaining_errors
    from validate.records.golden import GOLDEN_DIRECTORY
    from validate.run import record_for_polygraphy, record_golden

    explaining = explaining_errors(directory, GOLDEN_DIRECTORY, preparing=True, left=MEASURED_STAYS)
    with explaining, bar() as progress:
        count = record_golden(plan, directory, progress)
    if for_polygraphy:
        note(f"{record_for_polygraphy(plan, directory)}: what `polygraphy run` loads as inputs and outputs")
    if as_json:
        print_json({"golden": str(directory), "cases": count, **plan.golden_content()})
    command = f"qv-export validate {plan.bundle.directory} --against {directory} --report DIR"
    note(f"{directory}: {count} cases. Next: {command}")


def run_plan(plan: "Plan", directory: Path, resume: bool) -> "Report":
    """Validate, write the report, put the verdict into the manifest."""
    import shutil

    from export.directory_swap import explaining_errors, replacing_directory, require_replaceable
    from validate.report.render import pictures_of_worst_cases, write_report
    from validate.report.report import REPORT_DIRECTORY
    from validate.run import validate as run_validation

    directory = require_replaceable(directory, REPORT_DIRECTORY)
    workspace = directory.with_name(f".{directory.name}.unfinished")
    explaining = explaining_errors(directory, REPORT_DIRECTORY, preparing=True, left=MEASURED_STAYS)
    with explaining, bar() as progress:
        report = run_validation(plan, workspace, progress, resume=resume)
    with replacing_directory(directory, REPORT_DIRECTORY) as scratch:
        write_report(report, scratch, pictures_of_worst_cases(report, plan.cases, plan.image_settings))
    shutil.rmtree(workspace, ignore_errors=True)
    keep_verdict(plan.bundle.directory, report)
    return report


def keep_verdict(bundle: Path, report: "Report") -> None:
    """Write the verdict into the manifest as it is now; a bundle that was exported anew meanwhile has none."""
    from export.bundle import open_bundle

    manifest = open_bundle(bundle).manifest
    if manifest.key != report.subject.bundle_key:
        note(f"{bundle} changed during the validation: the verdict is in the report alone.")
        return
    try:
        replace(manifest, verdict=report.verdict()).write(bundle)
    except OSError as error:
        note(f"The verdict is in the report alone: {bundle} cannot be written ({error.strerror}).")


@contextmanager
def bar() -> Iterator["Progress"]:
    """A bar with the time left on a terminal, a line a step in a log, nothing with -q."""
    import sys

    if click.get_current_context().find_root().params.get("quiet"):
        yield lambda _text, _done, _total: None
    elif not sys.stderr.isatty():
        yield lambda text, done, total: click.echo(f"[{100 * done / total:3.0f}%] {text}", err=True)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=1.0)
            yield lambda text, done, total: progress.update(
                task, description=text, completed=done, total=total
            )


def summary(report: "Report", directory: Path) -> str:
    """The verdict and what failed first, for a person."""
    from validate.report.render import divergence_lines, failure_text, shown_failures

    verdict = "PASS" if report.passed else "FAIL"
    overview = (
        f"{verdict}: {len(report.gates)} gates, {len(report.failures)} failed; {report.machine.seconds:.1f} s, "
        f"peak memory {report.machine.peak_memory_bytes / 1e9:.2f} GB; {directory / 'report.html'}"
    )
    lines = [
        overview,
        *filter(None, divergence_lines(report)),
        *(f"- {failure_text(gate)}" for gate in shown_failures(report)),
    ]
    return "\n".join(lines)
