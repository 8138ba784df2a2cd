"""The reference run block by block says what it says when it runs whole."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export.checkpoint.tensors import open_checkpoint
from export.errors import UserError
from export.models.qwen2_vl.model import load_reference
from export.processor.processor import Processor
from export.quantization.calibration.statistics import (
    InputStatistics,
    StatisticsInOrder,
    input_statistics,
)

TINY = Path("models/qwen2-vl-tiny")
WANTED = (
    "visual.blocks.0.attn.qkv.weight",
    "visual.blocks.3.mlp.fc2.weight",
    "visual.merger.mlp.0.weight",
    "visual.merger.mlp.2.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.v_proj.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.4.mlp.up_proj.weight",
    "model.layers.4.mlp.down_proj.weight",
)


@pytest.fixture(scope="module")
def prompts():
    processor = Processor.from_directory(TINY)
    image = Image.effect_noise((90, 60), 80).convert("RGB")
    asked = [
        [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}],
        [{"type": "text", "text": "How much is the tea?"}],
        [{"type": "image", "image": image.rotate(90, expand=True)}] * 2,
    ]
    return [processor.inputs_from_messages([{"role": "user", "content": parts}]) for parts in asked]


@torch.inference_mode()
def seen_whole(prompts):
    model = load_reference(TINY)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in WANTED}
    for name in WANTED:
        module = model.get_submodule(name.removesuffix(".weight"))
        module.register_forward_pre_hook(lambda _m, x, name=name: seen[name].append(x[0].flatten(0, -2)))
    for prompt in prompts:
        vision = [torch.from_numpy(x) for x in (prompt.patches, prompt.positions, prompt.cu_seqlens)]
        embeds = model.encode(*vision) if len(prompt.patches) else torch.zeros(0, 192)
        size = len(prompt.token_ids)
        model.decode(
            torch.from_numpy(prompt.token_ids)[None],
            embeds,
            torch.from_numpy(prompt.position_ids)[:, None],
            torch.zeros(1, dtype=torch.int64),
            torch.tensor([size]),
            torch.tensor([[size - 1]]),
            model.new_cache(1, size),
        )
    return {name: torch.cat(rows).double() for name, rows in seen.items()}


def statistics(prompts, wanted, tmp_path):
    phases: list[str] = []
    found = dict(input_statistics(open_checkpoint(TINY), iter(prompts), wanted, tmp_path, phases.append))
    assert not list(tmp_path.iterdir())
    return found, phases


def test_what_products_see_is_what_they_see_in_the_whole_model(prompts, tmp_path):
    found, phases = statistics(prompts, WANTED, tmp_path)
    assert list(found) == list(WANTED)
    assert phases[-1] == "layers.4"
    for name, x in seen_whole(prompts).items():
        expected = (x.T @ x).numpy()
        np.testing.assert_allclose(
            found[name].second_moments, expected, rtol=0, atol=2e-5 * np.abs(expected).max(), err_msg=name
        )
        assert found[name].largest == pytest.approx(float(x.abs().max()), rel=1e-4)


def test_twice_is_bit_for_bit_the_same(prompts, tmp_path):
    one, other = (statistics(prompts, WANTED, tmp_path)[0] for _ in range(2))
    for name in WANTED:
        np.testing.assert_array_equal(one[name].second_moments, other[name].second_moments)


def test_nothing_after_the_last_wanted_block_runs(prompts, tmp_path):
    _, phases = statistics(prompts, WANTED[:1], tmp_path)
    assert phases == ["patch_embed", "blocks.0"]


def test_without_a_picture_the_vision_encoder_is_not_reached_and_that_is_said(prompts, tmp_path):
    found, _ = statistics(prompts[1:2], WANTED, tmp_path)
    assert list(found) == list(WANTED[4:])
    with pytest.raises(
        UserError, match=r"visual\.blocks\.0\.attn\.qkv cannot be calibrated: no conversation"
    ):
        StatisticsInOrder(iter(found.items())).of(WANTED[0])


def test_what_is_no_number_calibrates_nothing():
    seen = InputStatistics(np.array([[np.nan]], np.float32), 1.0)
    with pytest.raises(UserError, match="overflow float32"):
        StatisticsInOrder(iter([("one.weight", seen)])).of("one.weight")
