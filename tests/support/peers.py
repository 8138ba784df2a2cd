"""What Transformers computes for the same prompts, by its public interface, as its user would call it."""

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers import DynamicCache, Qwen2VLForConditionalGeneration
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

from tests.support.cases import Batch, Prompt
from tests.support.reference_guard import require_trustworthy

MM_TOKEN_TYPES = {"t": 0, "i": 1, "v": 2}


def load_peer(checkpoint: Path) -> Any:
    """Transformers' model with the checkpoint's weights cast to float32; a version known to be wrong is refused."""
    require_trustworthy(transformers.__version__, positions_are_given=True)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar for each checkpoint
        model = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def visual_embeds(peer: Any, batch: Batch) -> npt.NDArray[np.float32]:
    """Images through one interface, videos through the other, then put in order of appearance: [V, C]."""
    features = {
        "i": peer.model.get_image_features,
        "v": peer.model.get_video_features,
    }
    embeds: dict[str, list[torch.Tensor]] = {}
    for kind in set(batch.grid_kinds):
        patches, grids = _pixels_and_grids(batch, kind)
        embeds[kind] = list(features[kind](patches, grids).pooler_output)
    return torch.cat([embeds[kind].pop(0) for kind in batch.grid_kinds]).numpy()


def forward_inputs(batch: Batch) -> dict[str, Any]:
    """Arguments of the model's `forward`: padded on the left, as Transformers' users batch for generation."""
    columns = int(batch.lengths.max())
    rows = [_left_padded(prompt, columns) for prompt in batch.prompts]
    inputs = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    for kind, pixels, grid in (
        ("i", "pixel_values", "image_grid_thw"),
        ("v", "pixel_values_videos", "video_grid_thw"),
    ):
        if kind in batch.grid_kinds:
            inputs[pixels], inputs[grid] = _pixels_and_grids(batch, kind)
    return inputs


def position_ids(batch: Batch) -> torch.Tensor:
    """Our position ids on the left-padded batch: [3, B, S]."""
    columns = int(batch.lengths.max())
    padded = [np.pad(prompt.position_ids, ((0, 0), (columns - len(prompt), 0))) for prompt in batch.prompts]
    return torch.from_numpy(np.stack(padded, axis=1)).long()


def right_padded(batch: Batch, by_token: torch.Tensor) -> npt.NDArray[Any]:
    """Move the valid tokens of [B, S, ...] from the right end, where left padding puts them, to the left."""
    columns = by_token.shape[1]
    shifts = [columns - int(length) for length in batch.lengths]
    return np.stack(
        [np.roll(row.numpy(), -shift, axis=0) for row, shift in zip(by_token, shifts, strict=True)]
    )


def greedy_tokens(peer: Any, batch: Batch, num_steps: int) -> npt.NDArray[np.int64]:
    """Cached decoding by `forward`, with our position ids, so that Transformers' own rule plays no part."""
    inputs, cache = forward_inputs(batch), DynamicCache()
    mask = inputs.pop("attention_mask")
    output = peer(
        **inputs, attention_mask=mask, position_ids=position_ids(batch), past_key_values=cache, use_cache=True
    )
    tokens = [output.logits[:, -1].argmax(-1)]
    while len(tokens) < num_steps:
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        next_positions = torch.from_numpy(batch.lengths + batch.deltas + len(tokens) - 1)
        output = peer(
            input_ids=tokens[-1][:, None],
            attention_mask=mask,
            position_ids=next_positions[None, :, None].expand(3, -1, -1),
            past_key_values=cache,
            use_cache=True,
        )
        tokens.append(output.logits[:, -1].argmax(-1))
    return torch.stack(tokens, dim=1).numpy()


def generated_tokens(peer: Any, batch: Batch, num_steps: int) -> npt.NDArray[np.int64]:
    """What `generate` says, which computes its own position ids."""
    inputs = forward_inputs(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = peer.generate(
            **inputs, max_new_tokens=num_steps, min_new_tokens=num_steps, do_sample=False, eos_token_id=None
        )
    tokens: npt.NDArray[np.int64] = output[:, inputs["input_ids"].shape[1] :].numpy()
    return tokens


def export_vision(peer: Any, grids: list[tuple[int, int, int]]) -> Any:
    """The vision tower by `transformers.exporters.OnnxExporter`, traced on pictures of these grids, every axis dynamic.

    The result is called like `peer.model.visual` with `vision_inputs`, and answers through ONNX Runtime.
    """
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    patches = torch.zeros(sum(t * h * w for t, h, w in grids), 1176)
    inputs: dict[str, Any] = dict(vision_inputs(patches, grids))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return OnnxExporter().export(peer.model.visual, inputs, config=OnnxConfig(dynamic=True))


def vision_inputs(patches: torch.Tensor, grids: list[tuple[int, int, int]]) -> dict[str, torch.Tensor]:
    """What the exported vision tower wants beside the processor's output."""
    grid_thw = torch.tensor(grids)
    return {
        "hidden_states": patches,
        "grid_thw": grid_thw,
        "cu_seqlens": get_vision_cu_seqlens(grid_thw),
        "position_ids": get_vision_position_ids(grid_thw, 2),
    }


def _pixels_and_grids(batch: Batch, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The patches of one kind alone, and its grids."""
    ends = np.cumsum([steps * height * width for steps, height, width in batch.grids])
    pieces = np.split(batch.patches, ends[:-1])
    chosen = [i for i, grid_kind in enumerate(batch.grid_kinds) if grid_kind == kind]
    patches = np.concatenate([pieces[i] for i in chosen])
    return torch.from_numpy(patches), torch.tensor([batch.grids[i] for i in chosen])


def _left_padded(prompt: Prompt, columns: int) -> dict[str, torch.Tensor]:
    padding = (columns - len(prompt), 0)
    types = np.array([MM_TOKEN_TYPES[kind] for kind in prompt.kinds])
    arrays = {
        "input_ids": prompt.token_ids,
        "attention_mask": np.ones_like(prompt.token_ids),
        "mm_token_type_ids": types,
    }
    return {name: torch.from_numpy(np.pad(array, padding)) for name, array in arrays.items()}
