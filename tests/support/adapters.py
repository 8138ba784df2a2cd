"""PEFT adapters with random weights, written without PEFT, and their merge by PEFT's formula, written apart."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

# As PEFT 0.21 writes it; what is not given here is null, false or empty.
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "someone/base",
    "peft_version": "0.21.2",
    "r": 4,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
    "init_lora_weights": True,
    "inference_mode": True,
    "use_rslora": False,
    "use_dora": False,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "loftq_config": {},
    "modules_to_save": None,
    "layer_replication": None,
    "trainable_token_indices": None,
    "qalora_group_size": 16,
    "megatron_core": "megatron.core",
}


def factors(shapes: Mapping[str, tuple[int, int]], rank: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    """Random A [r, in] and B [out, r] for modules by path, under PEFT's names."""
    random = np.random.default_rng(seed)
    tensors = {}
    for module, (out, inner) in shapes.items():
        prefix = f"base_model.model.{module}"
        tensors[f"{prefix}.lora_A.weight"] = random.normal(0, 0.3, (rank, inner)).astype(np.float32)
        tensors[f"{prefix}.lora_B.weight"] = random.normal(0, 0.3, (out, rank)).astype(np.float32)
    return tensors


def write_adapter(directory: Path, tensors: Mapping[str, np.ndarray], **config: Any) -> Path:
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    save_file(dict(tensors), directory / "adapter_model.safetensors")
    return directory


def merged(weight: np.ndarray, module: str, tensors: Mapping[str, np.ndarray], **config: Any) -> np.ndarray:
    """W + alpha / r * B A, in float64, for a module by its path, with `alpha_pattern` and `use_rslora`."""
    a, b = (tensors[f"base_model.model.{module}.lora_{side}.weight"].astype(np.float64) for side in "AB")
    settings = CONFIG | config
    alpha = settings["lora_alpha"]
    for pattern, value in settings["alpha_pattern"].items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = value
            break
    rank = a.shape[0]
    scaling = alpha / rank**0.5 if settings["use_rslora"] else alpha / rank
    return weight.astype(np.float64) + scaling * (b @ a)
