"""What a stage finds, and how it is kept, shown and written into a page."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- gpu_proof: begin -->", "<!-- gpu_proof: end -->"


@dataclass(frozen=True)
class Finding:
    """One figure, or one thing that holds or does not."""

    case: str
    contestant: str
    value: float | None
    unit: str
    error: float | None = None
    """Against float64 or float32, over the largest value; None where it says nothing."""
    note: str = ""


@dataclass(frozen=True)
class StageResult:
    """What became of a stage."""

    stage: str
    status: str
    """"done", "skipped", "failed" or "out of time"."""
    seconds: float
    reason: str = ""
    findings: tuple[Finding, ...] = field(default=())


@dataclass(frozen=True)
class Proof:
    """A run: where, when, and all of its stages."""

    machine: str
    date: str
    is_dry_run: bool
    stages: tuple[StageResult, ...] = ()


def write_proof(proof: Proof, directory: Path) -> None:
    """`proof.json` and `proof.md`, whole at every moment: a run may be cut short at any."""
    for name, text in (("proof.json", json.dumps(asdict(proof), indent=1)), ("proof.md", table(proof))):
        half = directory / f".{name}"
        half.write_text(text + "\n", encoding="utf-8")
        half.replace(directory / name)


def read_proof(path: Path) -> Proof:
    """What `write_proof` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    stages = tuple(stage_from_json(stage) for stage in content.pop("stages"))
    return Proof(**content, stages=stages)


def stage_from_json(content: dict[str, Any]) -> StageResult:
    """Of one stage."""
    findings = tuple(Finding(**finding) for finding in content["findings"])
    return StageResult(**{**content, "findings": findings})


def table(proof: Proof) -> str:
    """Markdown: one row a figure, and one for each stage that did not come to its end."""
    kind = "Dry run on" if proof.is_dry_run else "Run on"
    lines = [f"{kind} {proof.machine}, {proof.date}.", ""]
    lines += ["| stage | case | who | figure | error | note |", "|---|---|---|---|---|---|"]
    for stage in proof.stages:
        if stage.status != "done":
            lines.append(f"| {stage.stage} | | | {stage.status} | | {_one_line(stage.reason)} |")
        lines += [_row(stage.stage, finding) for finding in stage.findings]
    return "\n".join(lines)


def _row(stage: str, finding: Finding) -> str:
    figure = "" if finding.value is None else f"{finding.value:.4g} {finding.unit}"
    error = "" if finding.error is None else f"{finding.error:.1e}"
    cells = (stage, _one_line(finding.case), finding.contestant, figure, error, _one_line(finding.note))
    return f"| {' | '.join(cells)} |"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:200]


def put_into_page(proof: Proof, page: Path) -> None:
    """Replace what stands between the marks of a page with the proof's table.

    Raises:
        ValueError: the page has no such marks, or the proof is a dry run, whose figures mean nothing.
    """
    if proof.is_dry_run:
        raise ValueError("a dry run has no figures for a page: give the proof of a run on a GPU")
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{page} must have one line {BEGIN} and one line {END} below it")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{table(proof)}\n\n{END}{after}", encoding="utf-8")


def worst(stages: Sequence[StageResult]) -> int:
    """Exit status: 1 if a stage failed; skipped ones and those out of time are said, not punished."""
    return int(any(stage.status == "failed" for stage in stages))
