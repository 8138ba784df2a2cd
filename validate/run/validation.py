"""A validation from a plan to a report: reference first, then the engine, then the gates.

One of the two is in memory at a time. What the reference says is kept on disk, which is also what makes golden sets
and `--resume` possible.
"""

import gc
import time
from pathlib import Path

from engines.proof import digests_of
from export.errors import UserError
from validate.cases.prompts import options_that_hold
from validate.gates.gates import noise_floors
from validate.gates.invariants import properties_outside
from validate.gates.weights import judge_weights
from validate.records.golden import create_golden, open_golden, open_workspace
from validate.report.report import Report
from validate.run.engine import LazyEngine, engine_answers, run_engine
from validate.run.facts import case_report, machine, subject
from validate.run.inside import depth_gates, look_inside
from validate.run.plan import Plan, Progress, cost
from validate.run.reference import LazyReference, required_noise
from validate.tasks.cost import ask_unquantized, limits_of, measure_cost
from validate.tasks.quality import compare_quality
from validate.tasks.runs import reference_answers


def run_validation(plan: Plan, workspace: Path, progress: Progress, *, resume: bool = False) -> Report:
    """Run a plan to its report. What an interruption leaves in `workspace` lets `resume` go on.

    Raises:
        UserError: a golden set or workspace that does not fit, or no case inside the engine's profile.
    """
    start = time.perf_counter()
    digests = plan.bundle.weight_digests() if plan.chosen is None else digests_of(plan.bundle, plan.chosen)
    if not plan.inside:
        problems = "\n- ".join(f"{case.name}: {plan.problem(case)}" for case in plan.cases)
        raise UserError(f"No case lies inside the engine's profile:\n- {problems}")
    open_workspace(workspace, plan.run_content(), resume=resume)
    work = sum(map(cost, plan.inside))
    reference = LazyReference(plan)
    records = plan.golden or workspace / "records"
    if plan.golden is not None:
        open_golden(plan.golden, plan.golden_content())
    else:
        create_golden(records, plan.golden_content())
        reference.record(plan.inside, records, progress, 0, 2 * work)
    reference.drop()
    noise = {case.name: required_noise(records, case, plan) for case in plan.inside}
    floors = noise_floors(tuple(noise.values()))
    reference_right = reference_answers(plan.tasks, plan.bundle.directory) if plan.tasks else []
    unquantized = None
    if plan.tasks and plan.unquantized:
        progress("Unquantized: tasks", work, 2 * work)
        unquantized = ask_unquantized(plan.tasks, plan.unquantized, workspace)
        gc.collect()
    opened = LazyEngine(plan)
    outcomes, properties = run_engine(opened, records, floors, workspace, progress, work)
    quality = None
    if plan.tasks:
        progress("Engine: tasks", 2 * work, 2 * work)
        quality = compare_quality(reference_right, engine_answers(opened, plan.tasks))
    cost_of_quantizing = None
    if plan.tasks and unquantized:
        progress("Engine: what quantizing cost", 2 * work, 2 * work)
        limits = limits_of(plan.gates)
        cost_of_quantizing = measure_cost(plan.tasks, unquantized, workspace, opened.get(), limits)
    opened.drop()
    cases = tuple(case_report(plan, case, noise.get(case.name), outcomes, floors) for case in plan.cases)
    divergence = None
    if plan.probes is not None:
        progress("Looking inside", 2 * work, 2 * work)
        divergence = look_inside(plan, plan.probes, reference, cases, records)
    return Report(
        subject=subject(plan, digests),
        weights=judge_weights(plan.bundle),
        gate_settings=plan.gates,
        noise_floors=floors,
        cases=cases,
        properties=tuple(properties),
        properties_outside=properties_outside(plan.engine.profile, floors),
        options_that_hold=options_that_hold(plan.cases, plan.engine.profile, plan.num_decode_steps),
        depth=() if divergence is None else depth_gates(divergence),
        divergence=divergence,
        task_quality=quality,
        quantization_cost=cost_of_quantizing,
        machine=machine(start, resume),
    )
