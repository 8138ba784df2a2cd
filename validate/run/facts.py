"""What a run's report says of the plan, the machine and each case."""

import resource
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime

from engines.packages import installed_version
from validate.bisect.search import HIGH_PRECISION_DTYPE
from validate.cases.prompts import PreparedCase
from validate.gates.gates import GateResult, judge_case
from validate.records.records import Measurement
from validate.report.report import CaseReport, RunFacts, Status, Subject
from validate.run.engine import Outcome
from validate.run.plan import Plan


def case_report(
    plan: Plan,
    case: PreparedCase,
    noise: Measurement | None,
    outcomes: Mapping[str, Outcome],
    floors: Mapping[str, float],
) -> CaseReport:
    """A case's measurement against its gates; a case without noise was not asked."""
    lengths = tuple(case.lengths.tolist())
    if noise is None:
        problem = plan.problem(case) or ""
        return CaseReport(case.name, "outside_profile", problem, lengths, case.num_patches, None, None, ())
    outcome = outcomes[case.name]
    if isinstance(outcome, str):
        gate = GateResult("runs", case.name, passed=False, value=None, limit=None, detail=outcome)
        return CaseReport(case.name, "fail", outcome, lengths, case.num_patches, None, noise, (gate,))
    gates = tuple(judge_case(case.name, outcome, noise, floors, plan.gates))
    status: Status = "pass" if all(gate.passed for gate in gates) else "fail"
    return CaseReport(case.name, status, "", lengths, case.num_patches, outcome, noise, gates)


def subject(plan: Plan, digests: Mapping[str, str]) -> Subject:
    """What was validated, with what."""
    manifest = plan.bundle.manifest
    dtype = HIGH_PRECISION_DTYPE[plan.engine.dtype]
    return Subject(
        bundle=plan.bundle.directory.name,
        bundle_key=manifest.key,
        source=manifest.source.name,
        graph_dtype=manifest.dtype,
        engine=plan.engine.name,
        engine_key=plan.engine_key,
        digests=digests,
        engine_dtype=plan.engine.dtype,
        reference=f"PyTorch, {dtype}" if plan.golden is None else f"golden set {plan.golden.name}, {dtype}",
        level=plan.level,
        num_decode_steps=plan.num_decode_steps,
        profile=asdict(plan.engine.profile),
        is_narrow=plan.is_narrow,
    )


def machine(start: float, resumed: bool) -> RunFacts:
    """Where and when it ran, for how long."""
    return RunFacts(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - start, 3),
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        versions={
            name: found
            for name in ("qv-export", "torch", "onnxruntime", "numpy")
            if (found := installed_version(name)) is not None  # with a golden set there may be no torch
        },
        resumed=resumed,
    )
