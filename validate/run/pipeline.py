"""A plan is run, its report written, its verdict kept. What the command and the Python API both call."""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.bundle import recorded_key
from export.errors import UserError
from export.files.directory_swap import explaining_errors, replacing_directory, require_replaceable
from export.records.verdicts import keep_verdict
from validate.records.golden import GOLDEN_DIRECTORY
from validate.report.render import images_of_worst_cases, write_report
from validate.report.report import REPORT_DIRECTORY, Report
from validate.report.words import samples_of_cases
from validate.run.plan import Plan, Progress
from validate.run.reference import record_golden
from validate.run.validation import run_validation

_LOGGER = logging.getLogger(__name__)

_MEASURED_STAYS = "What was measured is kept."


def run_plan(plan: Plan, directory: Path, progress: Progress, *, resume: bool = False) -> Report:
    """Validate and write the report's pages.

    Raises:
        UserError: `directory` is no place for a report; a golden set or unfinished run that does not fit.
    """
    directory = require_replaceable(directory, REPORT_DIRECTORY)
    workspace = directory.with_name(f".{directory.name}.unfinished")
    with _alone(directory):
        with explaining_errors(directory, REPORT_DIRECTORY, preparing=True, left=_MEASURED_STAYS):
            report = run_validation(plan, workspace, progress, resume=resume)
        with replacing_directory(directory, REPORT_DIRECTORY) as scratch:
            write_report(
                report,
                scratch,
                images_of_worst_cases(report, plan.cases, plan.image_settings),
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


def validate_plan(
    plan: Plan, report_directory: Path | None, progress: Progress, *, resume: bool = False
) -> Report:
    """Compare an engine with the reference, write the report's pages and keep the verdict in the bundle.

    A verdict that cannot be kept is logged as a warning.

    Args:
        plan: what is compared.
        report_directory: for the report's pages; None: none are kept.
        progress: told what runs now.
        resume: go on with the run that was interrupted before its report was written.

    Raises:
        UserError: as `run_plan`.
    """
    with tempfile.TemporaryDirectory(prefix="qv-export-") as scratch:
        report = run_plan(plan, report_directory or Path(scratch) / "report", progress, resume=resume)
    if problem := keep_report_verdict(plan.bundle.directory, report):
        _LOGGER.warning(problem)
    return report


def write_golden(plan: Plan, directory: Path, progress: Progress) -> int:
    """Write what the reference says there: a golden set. Returns how many cases it holds.

    Raises:
        UserError: the directory holds something else, or cannot be written.
    """
    with explaining_errors(directory, GOLDEN_DIRECTORY, preparing=True, left=_MEASURED_STAYS):
        return record_golden(plan, directory, progress)
