"""A validation from a bundle to a report: reference first, then the engine, then the gates.

One of the two is in memory at a time. What the reference says is kept on disk, which is also what makes golden sets
and `--resume` possible.
"""

import gc
import json
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.open import Choice
from engines.packages import installed_version
from engines.proof import digests_of
from engines.session import ProbeSession
from export.bundle import Bundle
from export.checkpoint.config import ModelConfig
from export.errors import UserError
from export.processor.settings import ImageSettings
from export.records.verdicts import LevelName
from export.wording import command_line
from validate.bisect.expected import (
    ExpectedSource,
    RecordedValues,
    ReferenceValues,
    projection,
    projections_path,
    write_projections,
)
from validate.bisect.probes import canonical_graphs
from validate.bisect.search import HIGH_PRECISION_DTYPE, Divergence, DivergenceSearch, all_questions
from validate.cases.prompts import PreparedCase, options_that_hold
from validate.execution import EngineUnderTest, OpenEngine
from validate.gates.gates import GateResult, GateSettings, judge_case, noise_floors
from validate.gates.invariants import check_properties, properties_outside
from validate.gates.weights import judge_weights
from validate.records.golden import create_golden, model_identity, open_golden, open_workspace
from validate.records.polygraphy_files import write_polygraphy_files
from validate.records.records import (
    Measurement,
    Record,
    RecordSummary,
    measure,
    measurement_from_json,
    read_record,
    read_summary,
    write_json,
    write_record,
)
from validate.report.report import CaseReport, Machine, Report, Status, Subject
from validate.tasks.cost import ask_unquantized, limits_of, measure_cost
from validate.tasks.quality import compare_quality
from validate.tasks.runs import TaskSet, reference_answers

if TYPE_CHECKING:  # torch loads when the reference does, and not at all with a golden set
    from validate.reference.high_precision import HighPrecisionReference

Progress = Callable[[str, float, float], None]
"""Told what runs now, the work done so far and all of it."""

Outcome = Measurement | str
"""What was measured, or what the engine raised."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that decides what a run computes."""

    bundle: Bundle
    config: ModelConfig
    image_settings: ImageSettings
    engine: EngineUnderTest
    probes: ProbeSession | None
    """None: the engine cannot show what it computes on the way."""
    engine_key: str
    """What the verdict belongs to."""
    chosen: Choice | None
    """What of the bundle's is validated; None: the reference itself."""
    is_narrow: bool
    """Smaller shapes are asked than usual."""
    level: LevelName
    cases: tuple[PreparedCase, ...]
    num_decode_steps: int
    gates: GateSettings
    golden: Path | None = None
    """Compare with this set instead of the reference."""
    tasks: TaskSet | None = None
    """Questions to ask both."""
    unquantized: Path | None = None
    """The checkpoint before its weights were quantized, which is asked them too; None: what that cost is not asked."""

    def problem(self, case: PreparedCase) -> str | None:
        """Why a case is outside of the engine's profile."""
        return case.problem(self.engine.profile, self.num_decode_steps)

    @property
    def inside(self) -> list[PreparedCase]:
        return [case for case in self.cases if self.problem(case) is None]

    def golden_content(self) -> dict[str, Any]:
        """What a golden set for this run says of itself."""
        return {
            "model": model_identity(self.bundle.manifest),
            "engine_dtype": self.engine.dtype,
            "num_decode_steps": self.num_decode_steps,
            **({"rounds_inputs": True} if self.engine.rounds_inputs else {}),
        }

    def run_content(self) -> dict[str, Any]:
        """What an interrupted run must share with the one that goes on."""
        return {
            **self.golden_content(),
            "bundle": self.bundle.manifest.key,
            "engine": self.engine_key,
            "profile": asdict(self.engine.profile),
            "cases": {case.name: case.digest() for case in self.cases},
            "gates": {"multiple": self.gates.multiple, "limits": dict(self.gates.limits)},
            "golden": None if self.golden is None else str(self.golden.resolve()),
        }


def record_golden(plan: Plan, directory: Path, progress: Progress) -> int:
    """Write the golden set for a plan's cases; those that are there stay. Returns how many cases it holds.

    Raises:
        UserError: the directory holds something else.
    """
    create_golden(directory, plan.golden_content())
    cases = plan.inside
    reference, work = _Reference(plan), sum(map(cost, cases))
    reference.record(cases, directory, progress, 0, work)
    probe = probe_of(cases)
    if not projections_path(directory, probe.name).is_file():
        progress(f"Reference: inside {probe.name}", work, work)
        _record_inside(plan, reference, probe, directory)
    return len(cases)


def record_for_polygraphy(plan: Plan, golden: Path) -> Path:
    """Write the probe's pictures and their embeddings, out of a golden set, where `polygraphy run` can read them.

    Raises:
        UserError: Polygraphy is not installed, or the probe has no picture.
    """
    probe = probe_of(plan.inside)
    if not any(len(prompt.patches) for prompt in probe.prompts):
        raise UserError(
            "--polygraphy is about the vision encoder, and no case inside the profile has a picture."
        )
    directory = golden / "polygraphy"
    write_polygraphy_files(directory, probe.prompts, read_record(golden, probe.name).prompts)
    return directory


def _record_inside(plan: Plan, reference: "_Reference", case: PreparedCase, directory: Path) -> None:
    """Keep what a search may ask about the probe, so that a machine without the reference also finds the op."""
    source = ReferenceValues(
        reference, (HIGH_PRECISION_DTYPE[plan.engine.dtype], plan.engine.dtype), look=projection
    )
    graphs = canonical_graphs(plan.bundle)
    answers = []
    for row, (prompt, expected) in enumerate(
        zip(case.prompts, read_record(directory, case.name).prompts, strict=True)
    ):
        questions = all_questions(graphs, plan.config, prompt)
        said = source.ask(row, prompt, expected, questions)
        answers += [(row, question, answer) for question, answer in zip(questions, said, strict=True)]
    write_projections(directory, case.name, answers)


def validate(plan: Plan, workspace: Path, progress: Progress, *, resume: bool = False) -> Report:
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
    reference = _Reference(plan)
    records = plan.golden or workspace / "records"
    if plan.golden is not None:
        open_golden(plan.golden, plan.golden_content())
    else:
        create_golden(records, plan.golden_content())
        reference.record(plan.inside, records, progress, 0, 2 * work)
    reference.drop()
    noise = {case.name: _required_noise(records, case, plan) for case in plan.inside}
    floors = noise_floors(tuple(noise.values()))
    reference_right = reference_answers(plan.tasks, plan.bundle.directory) if plan.tasks else []
    unquantized = None
    if plan.tasks and plan.unquantized:
        progress("Unquantized: tasks", work, 2 * work)
        unquantized = ask_unquantized(plan.tasks, plan.unquantized, workspace)
        gc.collect()
    opened = _Opened(plan)
    outcomes, properties = _run_engine(opened, records, floors, workspace, progress, work)
    quality = None
    if plan.tasks:
        progress("Engine: tasks", 2 * work, 2 * work)
        quality = compare_quality(reference_right, _engine_answers(opened, plan.tasks))
    cost_of_quantizing = None
    if plan.tasks and unquantized:
        progress("Engine: what quantizing cost", 2 * work, 2 * work)
        limits = limits_of(plan.gates)
        cost_of_quantizing = measure_cost(plan.tasks, unquantized, workspace, opened.get(), limits)
    opened.drop()
    cases = tuple(_case_report(plan, case, noise.get(case.name), outcomes, floors) for case in plan.cases)
    divergence = None
    if plan.probes is not None:
        progress("Looking inside", 2 * work, 2 * work)
        divergence = _look_inside(plan, plan.probes, reference, cases, records)
    return Report(
        subject=_subject(plan, digests),
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
        machine=_machine(start, resume),
    )


def cost(case: PreparedCase) -> float:
    """Relative time of a case: tokens, and patches, which are cheaper by what the encoder is smaller."""
    return 50.0 + float(case.lengths.sum()) + case.num_patches / 4


class _Reference:
    """The high_precision, loaded when first needed and dropped before the engine opens."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._high_precision: HighPrecisionReference | None = None

    def load(self) -> "HighPrecisionReference":
        if self._high_precision is None:
            from validate.reference.high_precision import HighPrecisionReference  # noqa: PLC0415 - torch, which a golden set does not need

            engine = self._plan.engine
            self._high_precision = HighPrecisionReference.from_directory(
                self._plan.bundle.directory, engine_dtype=engine.dtype, rounds_inputs=engine.rounds_inputs
            )
        return self._high_precision

    def drop(self) -> None:
        self._high_precision = None
        gc.collect()

    def record(
        self, cases: Sequence[PreparedCase], directory: Path, progress: Progress, done: float, total: float
    ) -> None:
        """Write the record of each case that has none yet."""
        for case in cases:
            progress(f"Reference: {case.name}", done, total)
            if not _fits(read_summary(directory, case.name), case):
                record = self.load().record(case, self._plan.num_decode_steps, self._plan.engine.dtype)
                projections_path(directory, case.name).unlink(missing_ok=True)  # of other inputs
                write_record(directory, case.name, record)
            done += cost(case)


def _fits(summary: RecordSummary | None, case: PreparedCase) -> bool:
    return summary is not None and summary.inputs_sha256 == case.digest()


def _required_noise(directory: Path, case: PreparedCase, plan: Plan) -> Measurement:
    summary = read_summary(directory, case.name)
    if summary is None or not _fits(summary, case):
        what = "no record of" if summary is None else "a record of other inputs for"
        raise UserError(
            f"{directory} has {what} the case {case.name!r}.",
            f"Record the set again with the same --level, --cases "
            f"and profile: `{command_line('validate', plan.bundle.directory, '--record', directory)}`.",
        )
    return summary.noise


class _Opened:
    """The engine, opened when first needed: a resumed run may have nothing left for it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._engine: OpenEngine | None = None

    def get(self) -> OpenEngine:
        if self._engine is None:
            profile = self.plan.engine.profile
            # One slot more than the batch: the one that slot reuse is compared with.
            sessions = self.plan.engine.open(profile.max_batch + 1, profile.max_context_tokens)
            self._engine = OpenEngine(*sessions, self.plan.config)
        return self._engine

    def drop(self) -> None:
        self._engine = None
        gc.collect()


def _run_engine(
    opened: _Opened,
    records: Path,
    floors: dict[str, float],
    workspace: Path,
    progress: Progress,
    done: float,
) -> tuple[dict[str, Outcome], list[GateResult]]:
    """Every case and every property, each kept on disk as soon as it is measured."""
    plan, outcomes, total = opened.plan, dict[str, Outcome](), 2 * done
    for case in plan.inside:
        progress(f"Engine: {case.name}", done, total)
        path = workspace / f"{case.name}.measured.json"
        if not path.is_file():
            write_json(path, _measured(opened.get(), case, read_record(records, case.name)))
        outcomes[case.name] = _outcome(path)
        done += cost(case)
    progress("Engine: properties", done, total)
    path = workspace / "properties.measured.json"
    if not path.is_file():
        results = check_properties(
            opened.get(), plan.config, plan.image_settings, floors, plan.gates, plan.engine.profile
        )
        write_json(path, [asdict(result) for result in results])
    properties = [GateResult(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))]
    return outcomes, properties


def _engine_answers(opened: _Opened, tasks: TaskSet) -> Sequence[bool]:
    engine = opened.get()
    return tasks.rightly_answered(engine.vision, engine.decoder, engine.config)


def _measured(engine: OpenEngine, case: PreparedCase, record: Record) -> dict[str, Any]:
    try:
        measured = measure(engine.answer(case, record.prompts), [prompt.answer for prompt in record.prompts])
    except Exception as error:  # noqa: BLE001 - whatever an engine raises is a finding about it
        return {"raised": f"{type(error).__name__}: {error}"}
    return asdict(measured)


def _outcome(path: Path) -> Outcome:
    content = json.loads(path.read_text(encoding="utf-8"))
    raised = content.get("raised")
    return measurement_from_json(content) if raised is None else str(raised)


def _case_report(
    plan: Plan,
    case: PreparedCase,
    noise: Measurement | None,
    outcomes: Mapping[str, Outcome],
    floors: Mapping[str, float],
) -> CaseReport:
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


def _look_inside(
    plan: Plan, probes: ProbeSession, reference: _Reference, cases: Sequence[CaseReport], records: Path
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
    expected = read_record(records, case.name).prompts
    found = [search.search(case.name, row, prompt, expected[row]) for row, prompt in enumerate(case.prompts)]
    return next((divergence for divergence in found if divergence.first is not None), found[0])


def probe_of(cases: Sequence[PreparedCase]) -> PreparedCase:
    """The smallest case with several pictures, or the smallest."""
    return min(cases, key=lambda case: (_num_pictures(case) < 2, cost(case)))


def _num_pictures(case: PreparedCase) -> int:
    return sum(len(prompt.grids) for prompt in case.prompts)


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


def _subject(plan: Plan, digests: Mapping[str, str]) -> Subject:
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


def _machine(start: float, resumed: bool) -> Machine:
    return Machine(
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
