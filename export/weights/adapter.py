"""What a PEFT LoRA adapter changes: read from `adapter_config.json` and the header of its weights, without torch.

PEFT names a module by its path in the model it was trained in: `base_model.model.model.layers.0.self_attn.q_proj`.
Here every change is known by the published name of the weight it changes.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import UserError
from export.files.json_object import read_json_object
from export.models.section import Section
from export.weights.names import published_name
from export.weights.safetensors_file import StoredTensor, read_safetensors_header

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"

_FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight")
_WRAPPED = re.compile(r"\.base_layer(?=\.)|\.modules_to_save(?:\.[^.]+(?=\.))?")

# Decide which modules were trained, or how: the stored tensors say the same. `fan_in_fan_out` has no effect on linear
# layers, which are all that is merged.
_INERT = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "task_type", "peft_version",
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "modules_to_save",
        "fan_in_fan_out", "eva_config", "runtime_config", "megatron_core", "qalora_group_size", "ensure_weight_tying",
    }
)  # fmt: skip
_HARMLESS_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base model's weights as they are."""


@dataclass(frozen=True)
class LowRank:
    """A weight W [out, in] becomes W + scaling * B A."""

    a: StoredTensor
    """[r, in]."""
    b: StoredTensor
    """[out, r]."""
    scaling: float

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight that it changes."""
        return (self.b.shape[0], self.a.shape[1])


@dataclass(frozen=True)
class Adapter:
    """All that an adapter changes, by the published name of the weight."""

    directory: Path
    low_rank: Mapping[str, LowRank]
    replaced: Mapping[str, StoredTensor]
    """Weights that were trained whole (`modules_to_save`), or stand under a change as the adapter brings them."""


def read_adapter(directory: Path, weights: Path | None = None) -> Adapter:
    """Read what an adapter changes.

    Args:
        directory: holds `adapter_config.json`.
        weights: its tensors, where they are not in `adapter_model.safetensors`.

    Raises:
        UserError: no LoRA adapter, a variant that is not merged here, or tensors that do not pair up; all at once.
    """
    path = directory / CONFIG_FILE
    if not path.exists():
        raise UserError(
            f"{directory} is no PEFT adapter: it has no {CONFIG_FILE}.",
            "Give the directory that PEFT saved it in.",
        )
    problems: list[str] = []
    scaling_of = _read_scaling(Section(read_json_object(path), problems))
    tensors = {tensor.name: tensor for tensor in read_safetensors_header(weights or directory / WEIGHTS_FILE)}
    factors: dict[str, dict[str, StoredTensor]] = {}
    replaced: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if match := _FACTOR.fullmatch(name):
            factors.setdefault(match["module"], {})[match["side"]] = tensor
        elif "lora_" in name:
            problems.append(f"{name}: LoRA of this kind of layer is not merged here, linear layers are")
        else:
            replaced[published_name(_WRAPPED.sub("", name))[0]] = tensor
    low_rank = {}
    for module, pair in factors.items():
        if problem := _pair_problem(module, pair):
            problems.append(problem)
        else:
            scaling = scaling_of(module, pair["A"].shape[0])
            low_rank[published_name(f"{module}.weight")[0]] = LowRank(pair["A"], pair["B"], scaling)
    if not (low_rank or replaced or problems):
        problems.append("it holds no tensors")
    if problems:
        raise UserError(
            f"{directory} cannot be merged:\n- " + "\n- ".join(sorted(problems)) + "\nMerge it with PEFT's "
            "merge_and_unload(), save the model, and export that."
        )
    return Adapter(directory, low_rank, replaced)


class _Scaling:
    """`lora_alpha / r`, or over its root, with the patterns that give single modules other numbers."""

    def __init__(self, alpha: float, alphas: Mapping[str, Any], *, by_root: bool) -> None:
        self._alpha, self._alphas, self._by_root = alpha, alphas, by_root

    def __call__(self, module: str, rank: int) -> float:
        # PEFT's `get_pattern_key`: a pattern is a regular expression for the end of the module's path.
        matching = (key for key in self._alphas if re.match(rf"(.*\.)?({key})$", module))
        alpha = float(self._alphas.get(next(matching, ""), self._alpha))
        return alpha / math.sqrt(rank) if self._by_root else alpha / rank


def _read_scaling(config: Section) -> _Scaling:
    """Read the numbers of the merge, and refuse every variant of LoRA that would need others."""
    config.one_of("peft_type", ("LORA",))
    config.one_of("bias", ("none",))
    config.one_of("init_lora_weights", _HARMLESS_STARTS)
    alphas = config.section("alpha_pattern")
    config.get("rank_pattern")  # each pair of factors says its own rank
    config.integer("r", 8)
    for key in alphas.content:
        alphas.number(key, 1.0)
    scaling = _Scaling(
        config.number("lora_alpha", 8.0),
        {key: value for key, value in alphas.content.items() if _is_pattern(alphas, key)},
        by_root=config.flag("use_rslora", False),
    )
    variants = sorted(key for key in config.unread() - _INERT if config.content[key] not in (False, {}, []))
    if variants:
        config.problem(
            f"{', '.join(variants)} of {CONFIG_FILE} would change the merge, and is not computed here"
        )
    return scaling


def _is_pattern(patterns: Section, key: str) -> bool:
    try:
        re.compile(key)
    except re.error as error:
        patterns.problem(f"{key!r} is no regular expression: {error}")
        return False
    return True


def _pair_problem(module: str, pair: Mapping[str, StoredTensor]) -> str | None:
    if pair.keys() != {"A", "B"}:
        return f"{module}: has lora_{''.join(pair)} alone"
    a, b = pair["A"].shape, pair["B"].shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        return f"{module}: lora_A {list(a)} and lora_B {list(b)} do not multiply"
    return None
