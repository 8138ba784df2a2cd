"""The reference's part of a run: what it says of each case, on disk, before an engine opens."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.errors import UserError
from export.wording import command_line
from validate.bisect.expected import ReferenceValues, projection, projections_path, write_projections
from validate.bisect.probes import canonical_graphs
from validate.bisect.search import HIGH_PRECISION_DTYPE, all_questions
from validate.cases.prompts import PreparedCase
from validate.records.golden import create_golden
from validate.records.polygraphy_files import write_polygraphy_files
from validate.records.records import Measurement, RecordSummary, read_case_record, read_summary, write_record
from validate.run.plan import Plan, Progress, cost, probe_of

if TYPE_CHECKING:  # torch loads when the reference does, and not at all with a golden set
    from validate.reference.high_precision import HighPrecisionReference


class LazyReference:
    """The high-precision reference, loaded when first needed and dropped before the engine opens."""

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


def required_noise(directory: Path, case: PreparedCase, plan: Plan) -> Measurement:
    """The noise that a set of records has for a case.

    Raises:
        UserError: the set has none for these inputs.
    """
    summary = read_summary(directory, case.name)
    if summary is None or not _fits(summary, case):
        what = "no record of" if summary is None else "a record of other inputs for"
        raise UserError(
            f"{directory} has {what} the case {case.name!r}.",
            f"Record the set again with the same --level, --cases "
            f"and profile: `{command_line('validate', plan.bundle.directory, '--record', directory)}`.",
        )
    return summary.noise


def record_golden(plan: Plan, directory: Path, progress: Progress) -> int:
    """Write the golden set for a plan's cases; those that are there stay. Returns how many cases it holds.

    Raises:
        UserError: the directory holds something else.
    """
    create_golden(directory, plan.golden_content())
    cases = plan.inside
    reference, work = LazyReference(plan), sum(map(cost, cases))
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
    write_polygraphy_files(directory, probe.prompts, read_case_record(golden, probe.name).prompts)
    return directory


def _record_inside(plan: Plan, reference: "LazyReference", case: PreparedCase, directory: Path) -> None:
    """Keep what a search may ask about the probe, so that a machine without the reference also finds the op."""
    source = ReferenceValues(
        reference, (HIGH_PRECISION_DTYPE[plan.engine.dtype], plan.engine.dtype), look=projection
    )
    graphs = canonical_graphs(plan.bundle)
    answers = []
    for row, (prompt, expected) in enumerate(
        zip(case.prompts, read_case_record(directory, case.name).prompts, strict=True)
    ):
        questions = all_questions(graphs, plan.config, prompt)
        said = source.ask(row, prompt, expected, questions)
        answers += [(row, question, answer) for question, answer in zip(questions, said, strict=True)]
    write_projections(directory, case.name, answers)
