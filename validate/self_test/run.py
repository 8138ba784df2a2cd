"""Puts known faults into the engine under test, one at a time: each must fail a validation.

Worth most on a GPU that nobody has run before: gates that pass there prove something only if they can fail there.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from engines.gpus import gpu_facts
from engines.session import EngineError
from engines.sizing.limits import Limits
from engines.store.build import build_engine_directory
from engines.store.cache import EngineRequest
from export.bundle import Bundle, open_bundle
from export.errors import UserError
from validate.execution import EngineUnderTest
from validate.run.plan import Plan, Progress
from validate.run.reference import record_golden
from validate.run.validation import run_validation
from validate.self_test.mutated import mutate_bundle, mutate_engine
from validate.self_test.mutations import Mutation, mutations
from validate.self_test.rank_mutations import rank_mutations
from validate.targets import open_target

CASE_NAMES = ("images_of_unequal_size", "ragged_batch")
"""Of every level: several pictures, and rows of unequal length, which between them meet each fault."""

Outcome = Literal["caught", "missed", "not made"]


@dataclass(frozen=True)
class FaultResult:
    """What became of one fault."""

    name: str
    meaning: str
    gate: str
    """The gate that is made to notice it."""
    outcome: Outcome
    detail: str
    """The gates that failed, or why the fault could not be put into this engine."""

    def sentence(self) -> str:
        """For a person: the gate that was made for it, before the others that failed too."""
        if self.outcome != "caught":
            return f"{self.outcome}: {self.name}, {self.meaning}{f': {self.detail}' if self.detail else ''}"
        failed = self.detail.split(", ")
        first = self.gate if self.gate in failed else failed[0]
        others = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        return f"caught: {self.name}, {self.meaning}: {first}{others}"


@dataclass(frozen=True)
class SelfTest:
    """What the gates noticed."""

    engine: str
    engine_key: str
    sound_failures: tuple[str, ...]
    """Gates that fail without any fault: then the others say nothing."""
    faults: tuple[FaultResult, ...]

    @property
    def passed(self) -> bool:
        """The engine as it is passes, and no fault that could be made passes."""
        return not self.sound_failures and not self.named("missed")

    def named(self, outcome: Outcome) -> list[FaultResult]:
        """The faults that ended so."""
        return [fault for fault in self.faults if fault.outcome == outcome]

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed, **asdict(self)}


def run_self_test(plan: Plan, progress: Progress, faults: Sequence[Mutation] | None = None) -> SelfTest:
    """Validate the engine as it is, and with every fault, on two small cases.

    A fault in a graph needs another engine where engines are built: it is built with the same limits for the same
    architectures, in a copy of the bundle that goes with the test.

    Args:
        plan: of any level.
        progress: told what runs now.
        faults: the ones to try; None: the whole suite for the model's sizes.

    Raises:
        UserError: the target is the reference, or the engine's limits leave none of the cases.
    """
    if plan.chosen is None:
        raise UserError(
            "--self-test puts faults into an engine's graphs, and the reference has none.",
            "Give another --target.",
        )
    cases = tuple(case for case in plan.inside if case.name in CASE_NAMES)
    if not cases:
        raise UserError(
            f"--self-test asks the cases {' and '.join(CASE_NAMES)}, and the engine's limits leave neither: "
            + "; ".join(plan.problem(case) or "" for case in plan.cases if case.name in CASE_NAMES)
        )
    of_ranks = rank_mutations(plan.config, plan.bundle.manifest.tensor_parallel)
    suite = [*mutations(plan.config), *of_ranks] if faults is None else faults
    with tempfile.TemporaryDirectory(prefix="qv-export-") as scratch:
        directory = Path(scratch)
        plan = replace(plan, cases=cases, probes=None, tasks=None)
        if plan.golden is None:
            record_golden(plan, directory / "records", progress)
            plan = replace(plan, golden=directory / "records")
        sound = run_validation(plan, directory / "sound", progress)
        results = tuple(_results(plan, suite, directory, progress))
    failures = tuple(sorted({gate.gate for gate in sound.failures}))
    return SelfTest(plan.engine.name, plan.engine_key, failures, results)


def _results(
    plan: Plan, suite: Sequence[Mutation], directory: Path, progress: Progress
) -> Iterator[FaultResult]:
    for number, mutation in enumerate(suite):
        progress(f"Fault: {mutation.name}", number, len(suite))
        yield _result(plan, mutation, directory / mutation.name)


def _result(plan: Plan, mutation: Mutation, directory: Path) -> FaultResult:
    outcome: Outcome
    directory.mkdir()
    try:
        engine = _faulty_engine(plan, mutation, directory / "bundle")
        report = run_validation(replace(plan, engine=engine), directory / "workspace", lambda *_: None)
    except (EngineError, UserError) as error:
        outcome, detail = "not made", str(error)
    else:
        failed = sorted({gate.gate for gate in report.failures})
        outcome, detail = ("caught" if failed else "missed"), ", ".join(failed)
    return FaultResult(mutation.name, mutation.meaning, mutation.gate, outcome, detail)


def _faulty_engine(plan: Plan, mutation: Mutation, directory: Path) -> EngineUnderTest:
    engine = plan.engine
    if mutation.edit is not None:
        bundle = open_bundle(mutate_bundle(plan.bundle.directory, mutation, directory))
        engine = open_target(_target(plan, bundle), bundle, engine.profile).engine
    return mutate_engine(engine, mutation, plan.config)


def _target(plan: Plan, bundle: Bundle) -> str:
    """What to open of a bundle whose graph has the fault: the graph, or an engine that is built of it."""
    assert plan.chosen is not None
    backend, record = plan.chosen.backend, plan.chosen.record
    if not backend.needs_engine or record is None:
        return backend.name
    request = EngineRequest(backend, Limits(**record.limits), record.sms)
    return build_engine_directory(bundle, request, gpu_facts(), 1, lambda *_: None).record.key
