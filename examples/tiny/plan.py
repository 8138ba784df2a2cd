"""What is learned when? The stages, the growing difficulty, the learning rate, and each step's samples."""

from dataclasses import dataclass, replace

import numpy as np

from examples.tiny.tasks import Sample, make_sample

MIXTURE = {
    "read": 0.27,
    "receipt": 0.2,
    "count": 0.09,
    "box": 0.1,
    "pictures": 0.13,
    "direction": 0.08,
    "order": 0.13,
}
EASY_MIXTURE = {
    "read": 0.56,
    "receipt": 0.08,
    "count": 0.05,
    "box": 0.04,
    "pictures": 0.1,
    "direction": 0.08,
    "order": 0.09,
}
"""While everything is at its easiest: mostly short texts, from which glyphs are learned first."""


@dataclass(frozen=True)
class Plan:
    """Steps at which the stages end, and the schedule: warm-up, a plateau, a linear decay to zero."""

    steps: int
    seed: int = 0
    samples_per_step: int = 96
    text_until: int = 200
    """Before stage 1: the language model alone, on questions about words."""
    vision_until: int = 300
    """Stage 1: vision encoder and merger; the language model is frozen."""
    easiest_until: int = 1000
    hardest_from: int = 4000
    """Lengths and numbers grow between these steps."""
    decay: float = 0.3
    """Share of the steps over which the learning rate falls to zero."""
    instruct: float = 0.1
    """Stage 3: the vision encoder is frozen for this last share of the steps."""

    def going_on(self) -> "Plan":
        """From a trained checkpoint: no warm-up, no stage 1, and difficulty that grows again from the easiest."""
        return replace(self, text_until=0, vision_until=0, easiest_until=0, hardest_from=self.steps * 6 // 10)

    def stage(self, step: int) -> str:
        if step < self.text_until:
            return "text"
        if step < self.vision_until:
            return "1 vision"
        return "2 all" if step < self.steps * (1 - self.instruct) else "3 instruct"

    def level(self, step: int) -> float:
        """Difficulty, from 0, single characters and few shapes, to 1, the tasks themselves."""
        grown = (step - self.easiest_until) / (self.hardest_from - self.easiest_until)
        return 1.0 if step < self.text_until else min(max(grown, 0.0), 1.0)

    def rate(self, step: int) -> float:
        """Learning rate relative to its plateau."""
        left = (self.steps - step) / (self.steps * self.decay)
        return min((step + 1) / 50, left, 1.0)

    def samples(self, step: int, rank: int = 0) -> list[Sample]:
        """One process's samples of a step: seed, step and rank alone decide."""
        rng = np.random.default_rng([self.seed, step, rank])
        level = self.level(step)
        mixture = MIXTURE if level > 0 else EASY_MIXTURE
        tasks = rng.choice(list(mixture), self.samples_per_step, p=list(mixture.values()))
        # Easy samples stay in the mixture; at the end seven in ten are as hard as can be.
        levels = level * np.sqrt(rng.random(len(tasks)))
        levels = np.where(rng.random(len(tasks)) < 0.7 * level**2, 1.0, levels)
        samples = [
            make_sample(str(task), (self.seed, step, rank, i), float(level))
            for i, (task, level) in enumerate(zip(tasks, levels, strict=True))
        ]
        return [sample.without_media() for sample in samples] if self.stage(step) == "text" else samples
