"""The look inside of a run: where an engine's values first differ, and how its error grows with depth."""

from collections.abc import Sequence
from pathlib import Path

from engines.session import ProbeSession
from validate.bisect.expected import ExpectedSource, RecordedValues, ReferenceValues, projections_path
from validate.bisect.probes import canonical_graphs
from validate.bisect.search import HIGH_PRECISION_DTYPE, Divergence, DivergenceSearch
from validate.gates.gates import GateResult
from validate.records.records import read_case_record
from validate.report.report import CaseReport
from validate.run.plan import Plan, cost, probe_of
from validate.run.reference import LazyReference


def look_inside(
    plan: Plan, probes: ProbeSession, reference: LazyReference, cases: Sequence[CaseReport], records: Path
) -> Divergence | None:
    """Search the smallest failing case, prompt by prompt; the probe where none fails.

    A golden set knows the inside of its probe alone. None: not even of that.
    """
    failing = {report.name for report in cases if report.status == "fail"}
    known = [
        case
        for case in plan.inside
        if plan.golden is None or projections_path(plan.golden, case.name).is_file()
    ]
    if not known:
        return None
    case = min((case for case in known if case.name in failing), key=cost, default=probe_of(known))
    source: ExpectedSource
    if plan.golden is None:
        source = ReferenceValues(reference, (HIGH_PRECISION_DTYPE[plan.engine.dtype], plan.engine.dtype))
    else:
        source = RecordedValues(plan.golden, case.name)
    graphs = canonical_graphs(plan.bundle)
    search = DivergenceSearch(probes, source, plan.config, graphs, plan.engine.dtype, plan.gates.multiple)
    expected = read_case_record(records, case.name).prompts
    found = [search.search(case.name, row, prompt, expected[row]) for row, prompt in enumerate(case.prompts)]
    return next((divergence for divergence in found if divergence.first is not None), found[0])


def depth_gates(divergence: Divergence) -> tuple[GateResult, ...]:
    """One gate a stage: no value at the borders between blocks, nor in the caches, above its limit."""
    results = []
    for trace in divergence.traces:
        worst = max((*trace.by_depth, *trace.kv_cache), key=lambda error: error.ratio)
        passed = not any(error.is_wrong for error in (*trace.by_depth, *trace.kv_cache))
        detail = f"worst at {worst.place}"
        gate = f"depth.{trace.stage}"
        results.append(
            GateResult(gate, divergence.case, passed, worst.error, worst.limit, worst.noise, detail)
        )
    return tuple(results)
