"""The peers that exporters and engines are measured against: Transformers' modules, as their user would run them.

Runs in measured children only: everything here imports torch.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration
from transformers.utils.logging import disable_progress_bar
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

from tests.support.reference_guard import require_trustworthy


def load_model(checkpoint: str, dtype: str) -> Any:
    """Qwen2VLForConditionalGeneration in eval mode, with the checkpoint's weights in `dtype`.

    What is measured has no long video, so that a fault of position ids alone does not matter.
    """
    require_trustworthy(transformers.__version__, positions_are_given=True)
    disable_progress_bar()  # it would write hundreds of lines between the measurements
    model: Any = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype)
    return model.eval().requires_grad_(False)


class VisionTower(nn.Module):
    """Transformers' vision tower with the inputs that torch.export needs precomputed.

    It traces with exactly one segment: with `grid_thw` alone, or two images, torch.export stops at a
    data-dependent shape.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, patches: Tensor, position_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Patches [P, 1176], position_ids [P, 2], cu_seqlens [N+1] to visual tokens [V, C]."""
        output = self.visual(patches, grid_thw=None, position_ids=position_ids, cu_seqlens=cu_seqlens)
        merged: Tensor = output.pooler_output
        return merged


class LanguageModel(nn.Module):
    """Transformers' decoder and head without a cache: the form that `torch.onnx.export` takes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.language_model = model.model.language_model
        self.lm_head = model.lm_head

    def forward(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        """inputs_embeds [B, S, C], position_ids [3, B, S] to logits [B, S, vocab]."""
        output = self.language_model(inputs_embeds=inputs_embeds, position_ids=position_ids, use_cache=False)
        logits: Tensor = self.lm_head(output.last_hidden_state)
        return logits


def vision_inputs(
    grids: list[list[int]], dtype: str = "float32", seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Random patches for pictures of (t, h, w) patches, and what VisionTower wants with them."""
    grid_thw = torch.tensor(grids)
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(int(grid_thw.prod(-1).sum()), 1176, generator=generator).to(getattr(torch, dtype))
    return patches, get_vision_position_ids(grid_thw, 2), get_vision_cu_seqlens(grid_thw)


def export_vision(model: Any, path: Path, dtype: str, opset: int | None = None) -> None:
    """torch.onnx.export of the vision tower, traced on one image of any size."""
    example = vision_inputs([[1, 8, 12]], dtype)
    num_patches = torch.export.Dim("num_patches", min=4)
    program = torch.onnx.export(
        VisionTower(model.model.visual).eval(),
        example,
        dynamo=True,
        opset_version=opset,
        input_names=["patches", "position_ids", "cu_seqlens"],
        output_names=["visual_embeds"],
        dynamic_shapes=({0: num_patches}, {0: num_patches}, None),
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=True)


def export_language_model(model: Any, path: Path, dtype: str) -> None:
    """torch.onnx.export of decoder and head, batch and length dynamic."""
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    hidden_size = model.config.text_config.hidden_size
    program = torch.onnx.export(
        LanguageModel(model).eval(),
        (torch.randn(2, 16, hidden_size, dtype=getattr(torch, dtype)), torch.arange(16).expand(3, 2, 16)),
        dynamo=True,
        input_names=["inputs_embeds", "position_ids"],
        output_names=["logits"],
        dynamic_shapes=({0: batch, 1: length}, {1: batch, 2: length}),
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=True)
