"""Limits: how large what an engine is asked may become.

An engine is compiled for ranges of shapes, the cache for one capacity. Every number here costs device memory or build
time when it grows, and refuses requests when it shrinks. No torch, no TensorRT.
"""

from dataclasses import asdict, dataclass

from export.errors import UserError

PATCHES_PER_TOKEN = 4  # spatial_merge_size 2, of every published Qwen2-VL


@dataclass(frozen=True)
class Limits:
    """What the largest call of an engine may hold. Checked when it is made; all problems come in one message."""

    max_patches: int = 16_384
    """Patches of one vision call, all pictures and videos together: 16,384 are 3.2 megapixels, 4,096 tokens."""
    max_segments: int = 64
    """Pictures, and temporal steps of videos, in one vision call. `choose_limits` lowers it to what fits on a card."""
    max_batch: int = 8
    """Rows of one decoder call; KV slots."""
    max_prompt_tokens: int | None = None
    """Query tokens of one prefill call; a longer prompt goes in chunks. None: 2,048, at most `max_context`."""
    max_context: int = 4096
    """Tokens of prompt and answer in one KV slot: the cache's capacity, a constant of the engine."""
    max_logits_tokens: int = 32
    """Query tokens of one row whose logits one call gives. Serving asks for one; for more, a session calls again."""

    def __post_init__(self) -> None:
        if self.max_prompt_tokens is None:
            object.__setattr__(self, "max_prompt_tokens", min(2048, self.max_context))
        values = asdict(self)
        problems = [
            f"{name} must be a whole number of at least 1, found {value!r}"
            for name, value in values.items()
            if type(value) is not int or value < 1
        ]
        if not problems:
            problems = list(self._contradictions())
        if problems:
            raise UserError("The limits cannot be served:\n- " + "\n- ".join(problems))

    def _contradictions(self) -> list[str]:
        problems = []
        if self.max_patches % PATCHES_PER_TOKEN:
            problems.append(
                f"max_patches must be a multiple of {PATCHES_PER_TOKEN}, found {self.max_patches}"
            )
        if self.max_segments * PATCHES_PER_TOKEN > self.max_patches:
            problems.append(
                f"max_segments {self.max_segments} of at least {PATCHES_PER_TOKEN} patches each do not fit into "
                f"max_patches {self.max_patches}"
            )
        if self.prompt_tokens > self.max_context:
            problems.append(
                f"max_prompt_tokens {self.prompt_tokens} must be at most max_context {self.max_context}"
            )
        return problems

    @property
    def prompt_tokens(self) -> int:
        """`max_prompt_tokens`, which is never None once the limits are made."""
        assert self.max_prompt_tokens is not None
        return self.max_prompt_tokens
