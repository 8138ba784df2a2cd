import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from engines.backends import backend_of
from engines.sizing.costs import (
    EngineCosts,
    free_disk_bytes,
    free_ram_bytes,
    plan_engine,
    shortages,
)
from engines.sizing.limits import Limits
from examples.random_checkpoint import SIZES, published_config
from export.checkpoint.config import ModelConfig, config_from_json, load_config
from export.checkpoint.tensors import open_checkpoint
from export.models.families import family_of
from export.models.sizes import decoder_weights, vision_weights

ROOT = Path(__file__).resolve().parents[3]
TWO_B = {
    "model_type": "qwen2_vl",
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}
SEVEN_B = TWO_B | {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("content", "vision", "decoder"),
    # The published models' exact counts, from their shapes.
    [(TWO_B, 665_271_296, 1_543_714_304), (SEVEN_B, 675_759_104, 7_070_619_136 + 544_997_376)],
)
def test_weights_are_counted_as_published(content: dict[str, object], vision: int, decoder: int) -> None:
    config = config_from_json(content)
    assert (vision_weights(config), decoder_weights(config)) == (vision, decoder)


@pytest.mark.parametrize("size", SIZES)
def test_weights_are_counted_as_in_the_familys_map(size: str) -> None:
    """Planning loads no torch, so it counts by itself: here it is held to the reference's own parameters."""
    config = config_from_json(published_config(SIZES[size], "bfloat16"))
    counts = {"vision": 0, "decoder": 0}
    for name, shape in family_of(config.model_type).weight_shapes(config).items():
        counts["vision" if name.startswith("visual.") else "decoder"] += math.prod(shape)
    assert counts == {"vision": vision_weights(config), "decoder": decoder_weights(config)}


def test_weights_are_counted_as_in_a_checkpoint() -> None:
    checkpoint = open_checkpoint(ROOT / "models" / "qwen2-vl-tiny")
    stored_bytes = sum(path.stat().st_size for path in checkpoint.weight_files)
    counted_bytes = 2 * (vision_weights(checkpoint.config) + decoder_weights(checkpoint.config))
    assert counted_bytes == pytest.approx(stored_bytes, rel=0.01)  # the rest is the header


@pytest.fixture
def config() -> ModelConfig:
    return config_from_json(TWO_B)


def plan_of(target: str, config: ModelConfig, dtype: str, limits: Limits, jobs: int = 1) -> EngineCosts:
    costs_of = partial(backend_of(target).costs, config, dtype)
    return plan_engine(target, config, dtype, limits, costs_of, jobs)


def test_pixels_become_patches_tokens_and_bytes(config: ModelConfig) -> None:
    limits = Limits(max_patches=8192, max_segments=2, max_batch=4, max_context=4096)
    plan = plan_of("tensorrt-rtx", config, "bfloat16", limits)
    assert plan.max_pixels == 8192 * 14 * 14
    assert plan.max_visual_tokens == 2048
    assert plan.kv_bytes_per_token == 28_672  # 2 x 28 layers x 2 heads x 128 values x 2 bytes
    assert plan.kv_cache_bytes == 28_672 * 4096 * 4
    vision, decoder = plan.graphs
    assert vision.weights_bytes == 2 * 665_271_296
    # 2 segments padded to 8,192 rows: q, k, v and the result, 1,280 values of 2 bytes, and their index arrays.
    assert vision.activation_bytes == 2 * 8192 * (4 * 1280 * 2 + 48) + 2 * 8192 * 1280 * 2 + 16_000_000
    assert plan.device_bytes == plan.kv_cache_bytes + sum(
        graph.weights_bytes + graph.activation_bytes for graph in (vision, decoder)
    )
    assert plan.build_ram_bytes == max(vision.build_ram_bytes, decoder.build_ram_bytes)
    assert plan_of("tensorrt-rtx", config, "bfloat16", limits, jobs=2).build_ram_bytes == (
        vision.build_ram_bytes + decoder.build_ram_bytes
    )


def test_onnxruntime_computes_in_float32_and_writes_no_engine(config: ModelConfig) -> None:
    plan = plan_of("onnxruntime", config, "bfloat16", Limits())
    assert plan.kv_bytes_per_token == 2 * 28_672
    assert plan.graphs[0].weights_bytes == 4 * 665_271_296
    assert plan.disk_bytes == 0


def test_what_fits_is_no_shortage(config: ModelConfig) -> None:
    plan = plan_of("tensorrt-rtx", config, "bfloat16", Limits())
    assert shortages(plan, 10**12, 10**12, 10**12) == []
    assert shortages(plan, 10**12, 10**12, None) == []


def test_every_shortage_is_told_with_what_helps(config: ModelConfig) -> None:
    plan = plan_of("tensorrt-rtx", config, "bfloat16", Limits(), jobs=2)
    ram, disk, gpu = shortages(plan, 10**9, 10**9, 16 * 10**9)
    assert (ram.what, disk.what, gpu.what) == ("memory to build", "disk for the engines", "GPU memory to run")
    assert ram.changes[0].startswith("--jobs 1 builds one graph at a time")
    assert "10.9 GB" not in gpu.sentence()
    assert any(change.startswith("--max-segments 32: ") for change in gpu.changes)


@pytest.mark.parametrize(
    ("change", "name"), [("--max-segments", "max_segments"), ("--max-patches", "max_patches")]
)
def test_a_change_that_is_said_to_help_does(config: ModelConfig, change: str, name: str) -> None:
    device_bytes = 14 * 10**9
    plan = plan_of("tensorrt-rtx", config, "bfloat16", Limits())
    [gpu] = shortages(plan, 10**12, 10**12, device_bytes)
    [advice] = [advice for advice in gpu.changes if advice.startswith(change + " ")]
    value = int(advice.split()[1].rstrip(":"))
    changed = plan_of("tensorrt-rtx", config, "bfloat16", replace(Limits(), **{name: value}))
    assert changed.device_bytes <= device_bytes
    doubled = plan_of("tensorrt-rtx", config, "bfloat16", replace(Limits(), **{name: 2 * value}))
    assert doubled.device_bytes > device_bytes


def test_a_model_that_no_limit_helps_is_told_so() -> None:
    plan = plan_of("tensorrt-rtx", config_from_json(SEVEN_B), "bfloat16", Limits())
    [gpu] = shortages(plan, 10**12, 10**12, 12 * 10**9)
    assert "no single limit is enough" in gpu.changes[0]


def test_this_machine_has_memory_and_disk(tmp_path: Path) -> None:
    assert 0 < free_ram_bytes() < 1 << 50
    assert 0 < free_disk_bytes(tmp_path) < 1 << 60


def test_the_shipped_model_can_be_planned() -> None:
    config = load_config(ROOT / "models" / "qwen2-vl-tiny")
    assert plan_of("tensorrt-rtx", config, "bfloat16", Limits(max_context=512)).device_bytes > 0
