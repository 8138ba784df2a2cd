"""Published models of the class, as `docs/checkpoints.md` lists them: how each differs from the publisher's own sizes.

Sizes are those of model cards and papers; none of the files was at hand, so a row says how such a checkpoint is
written, not that it was run. What their tools leave in `config.json` is added: that is where they really differ.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Relative:
    """One row: sizes to start from, what is other about them, and how the file is written."""

    size: str
    """Of `examples.random_checkpoint.SIZES`."""
    sizes: dict[str, Any] = field(default_factory=dict)
    layout: str = "published"
    config: dict[str, Any] = field(default_factory=dict)
    """Keys of `config.json` on top."""


# What Transformers 4.45 to 4.49 wrote when a fine-tune was saved.
_RESAVED = {
    "_name_or_path": "Qwen/Qwen2-VL",
    "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
    "use_cache": False,
    "pad_token_id": 151643,
    "transformers_version": "4.49.0",
}
_MINERU_SIZES = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}

RELATIVES = {
    "Qwen2-VL-2B, -Instruct": Relative("2b"),
    "Qwen2-VL-7B, -Instruct": Relative("7b"),
    "Qwen2-VL-72B, -Instruct": Relative("72b"),
    "QVQ-72B-Preview": Relative("72b", {"max_position_embeddings": 128_000}),
    "olmOCR-7B-0225-preview": Relative("7b", config=_RESAVED),
    "UI-TARS-2B-SFT": Relative("2b", config=_RESAVED),
    "UI-TARS-7B-SFT, -DPO": Relative("7b", config=_RESAVED),
    "ShowUI-2B": Relative("2b", config=_RESAVED),
    "MinerU2.5-2509-1.2B": Relative("2b", _MINERU_SIZES),
    "MinerU2.5-Pro-2605-1.2B": Relative(
        "2b", _MINERU_SIZES, layout="nested", config={"tie_word_embeddings": None}
    ),
    "typhoon2-qwen2vl-7b-vision-instruct": Relative("7b", config=_RESAVED),
    "EraX-VL-2B-V1.5": Relative("2b", config=_RESAVED),
    "EraX-VL-7B-V1.5": Relative("7b", config=_RESAVED),
    "any of them, stretched by YaRN": Relative(
        "7b", {"yarn": {"factor": 4.0, "original_max_position_embeddings": 32768}}
    ),
}
