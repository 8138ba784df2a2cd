"""A validation from end to end: plan, run, report, verdict. What the command and the Python API both call."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.bundle import Bundle, recorded_key
from export.errors import UserError
from export.files.directory_swap import explaining_errors, replacing_directory, require_replaceable
from export.install import require_extra
from export.records.verdicts import LEVELS, LevelName, keep_verdict
from validate.cases.builtin import Profile, make_level
from validate.cases.case_files import load_cases
from validate.cases.prompts import prepare_case
from validate.gates.gates import GateSettings
from validate.report.render import pictures_of_worst_cases, write_report
from validate.report.report import REPORT_DIRECTORY, Report
from validate.report.words import samples_of_cases
from validate.run import Plan, Progress, validate
from validate.targets import open_target
from validate.tasks.runs import load_task_set

MEASURED_STAYS = "What was measured is kept."


def make_plan(
    bundle: Bundle,
    target: str,
    level_name: LevelName,
    profile: Profile,
    *,
    dtype: str | None = None,
    cases: Path | None = None,
    gates_file: Path | None = None,
    golden: Path | None = None,
    tasks: Path | None = None,
    unquantized: Path | None = None,
    device: str | None = None,
) -> Plan:
    """Read everything that can be wrong before anything takes long.

    Args:
        bundle: opened.
        target: a backend's name, an engine's key or a target of the reference.
        level_name: how many cases.
        profile: the shapes to ask; a built engine narrows them.
        dtype: what a target of the reference computes in; None: the graphs' dtype.
        cases: the user's own as well.
        gates_file: TOML of `GateSettings`; None: the defaults.
        golden: compare with this set instead of the reference.
        tasks: questions with answers, for reference and engine.
        unquantized: the checkpoint before its weights were quantized, to be asked them as well.
        device: which GPU, such as `cuda:1`, where one computes; None: the first.

    Raises:
        UserError: a file that cannot be read, or a target that cannot run here.
    """
    if golden is None:
        require_extra("validate", "Comparing with the reference")
    config, settings = bundle.config, bundle.processor.image_settings
    subject = open_target(target, bundle, profile, dtype, device)
    level = make_level(level_name, subject.engine.profile)
    own = load_cases(cases, bundle.processor) if cases else []
    return Plan(
        bundle=bundle,
        config=config,
        image_settings=settings,
        engine=subject.engine,
        probes=subject.probes,
        engine_key=subject.key,
        chosen=subject.chosen,
        is_narrow=subject.is_narrow,
        level=level.name,
        cases=(*own, *(prepare_case(case, config, settings) for case in level.cases)),
        num_decode_steps=level.num_decode_steps,
        gates=GateSettings.from_toml(gates_file) if gates_file else GateSettings(),
        golden=golden,
        tasks=load_task_set(tasks, bundle.directory) if tasks else None,
        unquantized=unquantized,
    )


def run_plan(plan: Plan, directory: Path, progress: Progress, *, resume: bool = False) -> Report:
    """Validate and write the report's pages.

    Raises:
        UserError: `directory` is no place for a report; a golden set or unfinished run that does not fit.
    """
    directory = require_replaceable(directory, REPORT_DIRECTORY)
    workspace = directory.with_name(f".{directory.name}.unfinished")
    with _alone(directory):
        with explaining_errors(directory, REPORT_DIRECTORY, preparing=True, left=MEASURED_STAYS):
            report = validate(plan, workspace, progress, resume=resume)
        with replacing_directory(directory, REPORT_DIRECTORY) as scratch:
            write_report(
                report,
                scratch,
                pictures_of_worst_cases(report, plan.cases, plan.image_settings),
                samples_of_cases(
                    report,
                    plan.cases,
                    plan.bundle.processor.tokenizer,
                    plan.bundle.generation_config.eos_token_ids,
                ),
            )
        shutil.rmtree(workspace, ignore_errors=True)
    return report


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Let one validation at a time write a report; the kernel drops the lock of a killed one.

    Raises:
        UserError: another validation writes it now.
    """
    path = directory.with_name(f".{directory.name}.lock")
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError:  # no place for a report either: told with its reason where that is prepared
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(
            f"Another validation is writing {directory}.", "Wait for it, or give another --report."
        ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def keep_report_verdict(bundle: Path, report: Report) -> str | None:
    """Keep the verdict in the bundle, beside those of other engines and levels; the reason where it could not be kept.

    A bundle that was exported anew meanwhile has no verdict.
    """
    if recorded_key(bundle) != report.subject.bundle_key:
        return f"{bundle} changed during the validation: the verdict is in the report alone."
    try:
        keep_verdict(bundle, report.verdict())
    except OSError as error:
        return f"The verdict is in the report alone: {bundle} cannot be written ({error.strerror})."
    return None


def validate_bundle(bundle: Bundle, target: str, level: str, report_directory: Path | None = None) -> Report:
    """Compare an engine with the reference, quietly; the verdict is kept in the bundle.

    Args:
        bundle: opened.
        target: a backend's name or an engine's key.
        level: "quick", "standard" or "exhaustive".
        report_directory: for the report's pages; None: none are kept.

    Raises:
        UserError: no such level or engine, or it cannot run here.
    """
    name = next((known for known in LEVELS if known == level), None)
    if name is None:
        raise UserError(f"There is no level {level!r}.", f"Choose one of {', '.join(LEVELS)}.")
    plan = make_plan(bundle, target, name, Profile())
    with tempfile.TemporaryDirectory(prefix="qv-export-") as scratch:
        report = run_plan(plan, report_directory or Path(scratch) / "report", lambda *_: None)
    keep_report_verdict(bundle.directory, report)
    return report
