"""The plan of a validation: everything that decides what a run computes, and what can be wrong with it said first."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.open import Choice
from engines.session import ProbeSession
from export.bundle import Bundle
from export.checkpoint.config import ModelConfig
from export.errors import UserError
from export.install import require_extra
from export.processor.settings import ImageSettings
from export.records.verdicts import LEVELS, LevelName
from validate.cases.builtin import Profile, make_level
from validate.cases.case_files import load_cases
from validate.cases.prompts import PreparedCase, prepare_case
from validate.execution import EngineUnderTest
from validate.gates.gates import GateSettings
from validate.records.golden import model_identity
from validate.targets import open_target
from validate.tasks.runs import TaskSet, load_task_set

Progress = Callable[[str, float, float], None]
"""Told what runs now, the work done so far and all of it."""


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


def make_plan(
    bundle: Bundle,
    target: str,
    level: str,
    *,
    max_context: int | None = None,
    max_patches: int | None = None,
    max_batch: int | None = None,
    dtype: str | None = None,
    cases: Path | None = None,
    gates_file: Path | None = None,
    golden: Path | None = None,
    tasks: Path | None = None,
    unquantized: Path | None = None,
    device: str | None = None,
) -> Plan:
    """Read everything that can be wrong before anything takes long.

    Args:
        bundle: opened.
        target: a backend's name, an engine's key or a target of the reference.
        level: "quick", "standard" or "exhaustive": how many cases.
        max_context, max_patches, max_batch: the shapes to ask, see `Profile`; a built engine narrows them.
        dtype: what a target of the reference computes in; None: the graphs' dtype.
        cases: the user's own as well.
        gates_file: TOML of `GateSettings`; None: the defaults.
        golden: compare with this set instead of the reference.
        tasks: questions with answers, for reference and engine.
        unquantized: the checkpoint before its weights were quantized, to be asked them as well.
        device: which GPU, such as `cuda:1`, where one computes; None: the first.

    Raises:
        UserError: no such level, a file that cannot be read, or a target that cannot run here.
    """
    level_name = next((known for known in LEVELS if known == level), None)
    if level_name is None:
        raise UserError(f"There is no level {level!r}.", f"Choose one of {', '.join(LEVELS)}.")
    if golden is None:
        require_extra("validate", "Comparing with the reference")
    config, settings = bundle.config, bundle.processor.image_settings
    asked = {"max_context_tokens": max_context, "max_patches": max_patches, "max_batch": max_batch}
    profile = Profile(**{name: value for name, value in asked.items() if value is not None})
    subject = open_target(target, bundle, profile, dtype, device)
    questions = make_level(level_name, subject.engine.profile)
    own = load_cases(cases, bundle.processor) if cases else []
    return Plan(
        bundle=bundle,
        config=config,
        image_settings=settings,
        engine=subject.engine,
        probes=subject.probes,
        engine_key=subject.key,
        chosen=subject.chosen,
        is_narrow=subject.is_narrow,
        level=questions.name,
        cases=(*own, *(prepare_case(case, config, settings) for case in questions.cases)),
        num_decode_steps=questions.num_decode_steps,
        gates=GateSettings.from_toml(gates_file) if gates_file else GateSettings(),
        golden=golden,
        tasks=load_task_set(tasks, bundle.directory) if tasks else None,
        unquantized=unquantized,
    )


def cost(case: PreparedCase) -> float:
    """Relative time of a case: tokens, and patches, which are cheaper by what the encoder is smaller."""
    return 50.0 + float(case.lengths.sum()) + case.num_patches / 4


def probe_of(cases: Sequence[PreparedCase]) -> PreparedCase:
    """The smallest case with several pictures, or the smallest."""
    return min(cases, key=lambda case: (_num_images(case) < 2, cost(case)))


def _num_images(case: PreparedCase) -> int:
    return sum(len(prompt.grids) for prompt in case.prompts)
