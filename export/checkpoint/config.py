"""A checkpoint's typed configuration, read from its `config.json` by the family that it names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.files.json_object import read_json_object
from export.models.configuration import DecoderConfig, ModelConfig, VisionConfig, YarnConfig
from export.models.families import family_of

__all__ = [
    "DecoderConfig",
    "ModelConfig",
    "VisionConfig",
    "YarnConfig",
    "config_from_json",
    "load_config",
]


def load_config(directory: Path) -> ModelConfig:
    """Read `config.json` in a checkpoint's directory.

    Raises:
        UserError: the file is missing, is no JSON object, or describes no Qwen2-VL model; all problems at once.
    """
    path = directory / "config.json"
    return config_from_json(read_json_object(path), source=str(path))


def config_from_json(content: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """Build the typed configuration from a parsed `config.json`.

    Raises:
        UserError: another architecture than Qwen2-VL, unread quantization, missing, unfitting or unknown values.
    """
    return family_of(content.get("model_type"), source).read_config(content, source)
