"""Options of a build, and their way to the building process."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from engines.backends.tensorrt.library import TENSORRT_TARGETS, TensorRtTarget, architecture_problems
from engines.sizing.limits import Limits
from export.checkpoint.config import ModelConfig
from export.contract import GraphName
from export.errors import UserError
from plugins.cached_attention.limits import size_problems

HardwareCompatibility = Literal["none", "same_compute_capability", "ampere_plus"]
CachedAttention = Literal["native", "plugin"]
_MAX_OPTIMIZATION_LEVEL = 5


@dataclass(frozen=True)
class BuildOptions:
    """How to compile. Checked when it is made; all problems come in one message."""

    target: TensorRtTarget
    sm: tuple[int, ...] = ()
    """Architectures, compute capability x 10. TensorRT-RTX: one or several, all in one engine. TensorRT: the one of
    this machine's GPU, which an empty tuple stands for."""
    timing_cache: Path | None = None
    """File of measured kernel times, read before and written after. TensorRT only: RTX measures on the user's GPU."""
    weight_streaming: bool = False
    """Let the runtime keep weights in host memory and fetch them as layers run, for a model larger than its card."""
    hardware_compatibility: HardwareCompatibility = "none"
    """Which other GPUs a TensorRT engine runs on. RTX has its list `sm` for that."""
    optimization_level: int | None = None
    """0 (quick build) to 5 (quick engine); None: TensorRT's own default."""

    cached_attention: CachedAttention = "native"
    """Who attends to the cache in a TensorRT engine: its own layer, or our kernel, which reads only what is valid."""
    only_logits: bool = False
    """Give no candidates beside the decoder's logits: every step's logits then cross to the host to be chosen from."""

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise UserError("The build options do not go together:\n- " + "\n- ".join(problems))

    def _problems(self) -> list[str]:
        if self.target not in TENSORRT_TARGETS:
            return [f"target must be one of {', '.join(TENSORRT_TARGETS)}, found {self.target!r}"]
        problems = architecture_problems(self.target, self.sm)
        if self.hardware_compatibility not in get_args(HardwareCompatibility):
            levels = ", ".join(get_args(HardwareCompatibility))
            problems.append(
                f"hardware compatibility must be one of {levels}, found {self.hardware_compatibility!r}"
            )
        if self.cached_attention not in get_args(CachedAttention):
            kinds = ", ".join(get_args(CachedAttention))
            problems.append(f"cached attention must be one of {kinds}, found {self.cached_attention!r}")
        if self.target == "tensorrt-rtx":
            if self.hardware_compatibility != "none":
                problems.append(
                    "hardware compatibility is TensorRT's; for TensorRT-RTX list the architectures instead"
                )
            if self.cached_attention != "native":
                problems.append(
                    "attention to the cache by plugin is TensorRT's; TensorRT-RTX takes no plugins"
                )
            if self.timing_cache is not None:
                problems.append("a timing cache is TensorRT's; TensorRT-RTX measures nothing when it builds")
        level = self.optimization_level
        if level is not None and not 0 <= level <= _MAX_OPTIMIZATION_LEVEL:
            problems.append(f"optimization level must be 0 to {_MAX_OPTIMIZATION_LEVEL}, found {level}")
        return problems


def options_of_key(target: TensorRtTarget, sm: tuple[int, ...], inputs: Mapping[str, str]) -> BuildOptions:
    """The options that an engine was built with, from what went into its key. A timing cache is none of it."""
    level = inputs.get("option optimization_level", "None")
    given: dict[str, Any] = {
        name: inputs[f"option {name}"]
        for name in ("hardware_compatibility", "cached_attention")
        if f"option {name}" in inputs
    }
    for name in ("weight_streaming", "only_logits"):
        given[name] = inputs.get(f"option {name}") == str(True)
    return BuildOptions(target, sm, optimization_level=None if level == "None" else int(level), **given)


def require_attention(config: ModelConfig, limits: Limits, options: BuildOptions) -> None:
    """Raises:
    UserError: the plugins that attend to the cache do not compute this model's heads, or so long a context.
    """
    decoder = config.decoder
    sizes = (decoder.num_attention_heads, decoder.num_key_value_heads, decoder.head_dim, limits.max_context)
    problems = size_problems(*sizes) if options.cached_attention == "plugin" else []
    if problems:
        raise UserError(
            "--cached-attention plugin does not serve this decoder (H query and K KV heads of D channels, "
            "L tokens of context). Build with --cached-attention native, or mend:\n- " + "\n- ".join(problems)
        )


@dataclass(frozen=True)
class BuildRequest:
    """One engine to build, as the building process gets it."""

    bundle: Path
    graph: GraphName
    limits: Limits
    options: BuildOptions
    output: Path
    probes: tuple[str, ...] = ()
    """Values of the graph that the engine gives as further outputs."""

    def gives_candidates(self, last_stage: GraphName) -> bool:
        """Whether this engine does: the decoder, or its last stage, and not to look at values inside."""
        return not self.options.only_logits and self.graph == last_stage and not self.probes

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "BuildRequest":
        content = json.loads(text)
        options = content["options"]
        cache = options["timing_cache"]
        return cls(
            bundle=Path(content["bundle"]),
            graph=content["graph"],
            limits=Limits(**content["limits"]),
            options=BuildOptions(
                **{**options, "sm": tuple(options["sm"]), "timing_cache": Path(cache) if cache else None}
            ),
            output=Path(content["output"]),
            probes=tuple(content["probes"]),
        )
