"""The engine's part of a run: every case and property through it, each kept on disk as soon as it is measured."""

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from validate.cases.prompts import PreparedCase
from validate.execution import OpenEngine
from validate.gates.gates import GateResult
from validate.gates.invariants import check_properties
from validate.records.records import (
    Measurement,
    Record,
    measure_answers,
    measurement_from_json,
    read_case_record,
    write_json,
)
from validate.run.plan import Plan, Progress, cost
from validate.tasks.runs import TaskSet

Outcome = Measurement | str
"""What was measured, or what the engine raised."""


class LazyEngine:
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


def run_engine(
    opened: LazyEngine,
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
            write_json(path, _measured(opened.get(), case, read_case_record(records, case.name)))
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


def engine_answers(opened: LazyEngine, tasks: TaskSet) -> Sequence[bool]:
    """Which questions of a task set the engine answers rightly."""
    engine = opened.get()
    return tasks.rightly_answered(engine.vision, engine.decoder, engine.config)


def _measured(engine: OpenEngine, case: PreparedCase, record: Record) -> dict[str, Any]:
    try:
        measured = measure_answers(
            engine.answer(case, record.prompts), [prompt.answer for prompt in record.prompts]
        )
    except Exception as error:  # noqa: BLE001 - whatever an engine raises is a finding about it
        return {"raised": f"{type(error).__name__}: {error}"}
    return asdict(measured)


def _outcome(path: Path) -> Outcome:
    content = json.loads(path.read_text(encoding="utf-8"))
    raised = content.get("raised")
    return measurement_from_json(content) if raised is None else str(raised)
