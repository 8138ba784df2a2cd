"""The training plan: stages, their lengths and learning rates, and each step's samples."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from examples.tiny.tasks import Sample, make_sample

MIXTURE: Mapping[str, float] = {
    "read": 0.14,
    "echo": 0.03,
    "receipt": 0.19,
    "ledger": 0.05,
    "count": 0.11,
    "box": 0.06,
    "crowd": 0.22,
    "pictures": 0.08,
    "direction": 0.02,
    "order": 0.10,
}
COPYING: Mapping[str, float] = {"read": 0.45, "pictures": 0.2, "direction": 0.1, "order": 0.25}
"""Tasks whose answers are copied from the picture: short samples, and the skill that most others build on."""
LOOKING: Mapping[str, float] = {
    "page": 0.2,
    "receipt": 0.25,
    "read": 0.07,
    "count": 0.2,
    "box": 0.12,
    "pictures": 0.05,
    "direction": 0.03,
    "order": 0.08,
}
"""What teaches most about what a token shows: pictures full of characters, tables, and shapes to count."""
WARM_UP_STEPS = 40


@dataclass(frozen=True)
class Stage:
    """Steps that train the same weights. Its learning rate warms up, stays, and falls linearly."""

    name: str
    steps: int
    samples: int
    """A step's samples."""
    learns: tuple[str, ...]
    """Prefixes of the weights that learn."""
    rate: float = 1.0
    """Learning rate relative to the optimizer's plateau."""
    final_rate: float = 0.0
    decay: float = 0.4
    """Share of the steps over which the rate falls to `final_rate`."""
    drawn: bool = True
    """Pictures are drawn; otherwise each visual token is given as the code of what it shows."""
    answers: bool = True
    """The loss is on answers; otherwise only on what each visual token shows."""
    mixture: Mapping[str, float] = field(default_factory=lambda: MIXTURE)

    def rate_at(self, step: int) -> float:
        falling = min((self.steps - step) / (self.steps * self.decay), 1.0)
        return min((step + 1) / WARM_UP_STEPS, self.final_rate + (self.rate - self.final_rate) * falling)


VISION, LANGUAGE = ("visual.",), ("model.",)
STAGES = (
    Stage("text", 200, 64, LANGUAGE, drawn=False, final_rate=1.0, mixture=COPYING),
    Stage("text", 10500, 64, LANGUAGE, drawn=False, rate=0.8, final_rate=0.04, decay=0.9),
    Stage("1 vision", 8500, 64, VISION, answers=False, final_rate=0.02, decay=0.7, mixture=LOOKING),
    Stage("2 all", 3400, 64, VISION + LANGUAGE, rate=0.25, final_rate=0.006, decay=0.9),
    Stage("3 instruct", 40, 64, LANGUAGE, rate=0.05, decay=1.0),
)
"""The paper's three stages (arXiv 2409.12191, section 2.2) after a warm-up of the language model."""


@dataclass(frozen=True)
class Plan:
    stages: tuple[Stage, ...] = STAGES
    seed: int = 0

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def scaled(self, factor: float) -> "Plan":
        """The same stages, longer or shorter."""
        return replace(
            self,
            stages=tuple(replace(stage, steps=max(1, round(stage.steps * factor))) for stage in self.stages),
        )

    def only(self, name: str) -> "Plan":
        """The stages of this name alone."""
        return replace(self, stages=tuple(stage for stage in self.stages if stage.name == name))

    def at(self, step: int) -> tuple[Stage, int]:
        """The stage of a step, and which of the stage's steps it is."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        raise IndexError(f"step {step} is beyond the plan's {self.steps}")

    def samples(self, step: int) -> list[Sample]:
        """A step's samples: seed and step alone decide."""
        stage, _ = self.at(step)
        rng = np.random.default_rng([self.seed, step])
        tasks = rng.choice(list(stage.mixture), stage.samples, p=list(stage.mixture.values()))
        return [make_sample(str(task), (self.seed, step, i)) for i, task in enumerate(tasks)]
