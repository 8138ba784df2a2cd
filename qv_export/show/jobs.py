"""Facts about the jobs of qv-export: which of them can be done on this machine, and what is missing for the rest."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from export.install import install_command, missing_modules


@dataclass(frozen=True)
class TargetFacts:
    """Whether engines of a target can be built and run here."""

    name: str
    version: str | None
    """Of its library; None where it is missing or too old."""
    builds: bool
    runs: bool
    advice: str


@dataclass(frozen=True)
class JobFacts:
    """Whether a job can be done here."""

    name: str
    possible: bool
    advice: str
    """With what it is done, or what is missing; may be empty."""


def job_facts(targets: Sequence[TargetFacts]) -> tuple[JobFacts, ...]:
    """Each job in the order in which a user comes to it.

    Args:
        targets: what each backend can do here.
    """
    builds = [target.name for target in targets if target.builds]
    runs = [target.name for target in targets if target.runs]
    return (
        _needing("export", "export"),
        JobFacts(
            "build", bool(builds), f"for {', '.join(builds)}" if builds else "no target's library is here"
        ),
        JobFacts("run", bool(runs), f"with {', '.join(runs)}" if runs else "no target runs here"),
        _validate(bool(runs)),
        JobFacts("serve", bool(runs), "over OpenAI's API" if runs else "no target runs here"),
        JobFacts("deploy", True, _triton()),
    )


def _needing(job: str, extra: str) -> JobFacts:
    missing = missing_modules(extra)
    advice = f"{', '.join(missing)} missing: {install_command(extra)}" if missing else ""
    return JobFacts(job, not missing, advice)


def _validate(has_engine: bool) -> JobFacts:
    reference = _needing("validate", "validate")
    if reference.possible or not has_engine:
        return reference
    return JobFacts("validate", True, f"with --against GOLDEN alone; the reference: {reference.advice}")


def _triton() -> str:
    found = shutil.which("tritonserver")
    return (
        f"for {found}" if found else "for another machine: no tritonserver on PATH; it is in NVIDIA's image"
    )
