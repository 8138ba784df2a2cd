"""Adapters merged and pickled weights converted: the bytes that an export writes itself."""

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file as load_torch_file

import qv_export
from examples.random_checkpoint import write_checkpoint
from export.bundle import open_bundle
from export.checkpoint.tensors import Checkpoint, open_checkpoint
from export.errors import UserError
from export.exporter import export_checkpoint
from export.models.qwen2_vl.model import load_reference
from export.weights.prepare import needs_new_weights, write_new_weights
from tests.support.adapters import factors, merged, write_adapter

SMALL: dict[str, Any] = {"num_hidden_layers": 2, "vision_depth": 1, "vocab_size": 400, "dtype": "float32"}
SHAPES = {
    "model.layers.0.self_attn.q_proj": (128, 128),
    "model.layers.1.self_attn.v_proj": (64, 128),
    "model.layers.1.mlp.down_proj": (128, 192),
    "visual.blocks.0.attn.qkv": (192, 64),
    "visual.merger.mlp.2": (128, 256),
}


def silent(_phase: str) -> None:
    pass


def values(checkpoint: Checkpoint, name: str) -> np.ndarray:
    stored = checkpoint.tensors[name]
    with safe_open(stored.path, framework="np") as file:
        return file.get_tensor(stored.name)


def prepare(base: Path, adapter: Path | None, directory: Path) -> Checkpoint:
    directory.mkdir()
    return write_new_weights(base, adapter, directory, silent)


# Adapters


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "config", [{}, {"use_rslora": True, "lora_alpha": 3}, {"alpha_pattern": {"down_proj": 2, "mlp.2": 40}}]
)
def test_weights_are_merged_as_peft_does_and_rounded_once(tmp_path: Path, dtype, config):
    base = write_checkpoint(tmp_path / "base", **SMALL | {"dtype": dtype})
    tensors = factors(SHAPES)
    checkpoint = prepare(base, write_adapter(tmp_path / "adapter", tensors, **config), tmp_path / "out")
    before = open_checkpoint(base)
    # One rounding to the weight's dtype, beside what float32 sums of few terms are off.
    roundoff = {"float32": 2**-22, "float16": 2**-11, "bfloat16": 2**-8}[dtype]
    for module in SHAPES:
        expected = merged(values(before, f"{module}.weight"), module, tensors, **config)
        result = values(checkpoint, f"{module}.weight")
        assert str(result.dtype) == dtype
        assert np.all(np.abs(result.astype(np.float64) - expected) <= roundoff * np.abs(expected) + 2**-18)


def test_only_what_the_adapter_changes_gets_new_bytes(tmp_path: Path):
    base = write_checkpoint(tmp_path / "base", shards=2, **SMALL)
    checkpoint = prepare(base, write_adapter(tmp_path / "adapter", factors(SHAPES)), tmp_path / "out")
    changed = {name for name, tensor in checkpoint.tensors.items() if tensor.path.parent == tmp_path / "out"}
    assert changed == {f"{module}.weight" for module in SHAPES}
    assert {tensor.path.parent for tensor in checkpoint.tensors.values()} == {base, tmp_path / "out"}


def test_a_head_that_was_trained_whole_unties_the_model(tmp_path: Path):
    base = write_checkpoint(tmp_path / "base", **SMALL)
    head = np.random.default_rng(0).normal(size=(400, 128)).astype(np.float32)
    adapter = write_adapter(tmp_path / "adapter", {"base_model.model.lm_head.weight": head})
    checkpoint = prepare(base, adapter, tmp_path / "out")
    assert not checkpoint.config.decoder.tie_word_embeddings
    assert np.array_equal(values(checkpoint, "lm_head.weight"), head)


def test_a_vocabulary_that_the_adapter_resized_is_followed(tmp_path: Path):
    base = write_checkpoint(tmp_path / "base", **SMALL)
    table = np.random.default_rng(0).normal(size=(432, 128)).astype(np.float32)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    adapter = write_adapter(tmp_path / "adapter", {f"base_model.model.{name}": table for name in names})
    checkpoint = prepare(base, adapter, tmp_path / "out")
    assert checkpoint.config.decoder.vocab_size == 432
    assert checkpoint.config.decoder.tie_word_embeddings


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (factors({"model.layers.7.mlp.up_proj": (192, 128)}), "model.layers.7.mlp.up_proj.weight: changed by"),
        (factors({"model.layers.0.mlp.up_proj": (64, 128)}), "shape [192, 128], the adapter's [64, 128]"),
        (factors({"lm_head": (400, 128)}), "lm_head.weight: changed by LoRA, although the model's head is its token"),
        (
            {"base_model.model.model.embed_tokens.weight": np.ones((400, 128), np.float32)},
            "model.embed_tokens.weight: replaced, although the model's head is its token embedding",
        ),
        ({"base_model.model.score.weight": np.ones((1, 128), np.float32)}, "score.weight: changed by the adapter"),
        (
            {"base_model.model.model.norm.weight": np.ones(64, np.float32)},
            "model.norm.weight: shape [128], the adapter's [64]",
        ),
    ],
)  # fmt: skip
def test_an_adapter_of_another_model_is_refused(tmp_path: Path, tensors, expected):
    base = write_checkpoint(tmp_path / "base", **SMALL)
    with pytest.raises(UserError) as caught:
        prepare(base, write_adapter(tmp_path / "adapter", tensors), tmp_path / "out")
    assert expected in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_pickled_adapter_is_the_same(tmp_path: Path):
    base = write_checkpoint(tmp_path / "base", **SMALL)
    adapter = write_adapter(tmp_path / "adapter", factors(SHAPES))
    first = prepare(base, adapter, tmp_path / "first")
    torch.save(load_torch_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    second = prepare(base, adapter, tmp_path / "second")
    assert all(np.array_equal(values(first, name), values(second, name)) for name in first.tensors)
    assert [path.name for path in (tmp_path / "second").iterdir()] == ["adapter_merged.safetensors"]


def test_an_adapter_in_place_of_a_model_names_its_base(tmp_path: Path):
    adapter = write_adapter(tmp_path / "adapter", factors(SHAPES))
    with pytest.raises(
        UserError, match=r"is a PEFT adapter, not a model: export its base model \(someone/base\)"
    ):
        export_checkpoint(adapter, tmp_path / "bundle")
    with pytest.raises(UserError, match=r"is a PEFT adapter, not a model: .*with --adapter"):
        qv_export.export(adapter, tmp_path / "bundle")


def test_a_bundle_with_an_adapter_is_whole(tmp_path: Path):
    base = write_checkpoint(tmp_path / "base", shards=2, **SMALL)
    tensors = factors(SHAPES)
    adapter = write_adapter(tmp_path / "adapter", tensors)
    manifest = export_checkpoint(base, tmp_path / "bundle", weights="link", adapter=adapter)
    assert open_bundle(tmp_path / "bundle").manifest == manifest
    assert manifest.source.name == "base with adapter"
    (record,) = (record for record in manifest.weights if record.name == "adapter_merged.safetensors")
    assert record.sha256
    assert record.fingerprint

    before, after = load_reference(base).state_dict(), load_reference(tmp_path / "bundle").state_dict()
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        expected = merged(weight.numpy(), module, tensors) if module in SHAPES else weight.numpy()
        np.testing.assert_allclose(after[name].numpy(), expected, rtol=1e-5, atol=1e-6)


# Pickled weights


def pickled(checkpoint: Path, *, files: int = 1, legacy: bool = False) -> Path:
    """The same checkpoint as older tools saved it."""
    tensors = load_torch_file(checkpoint / "model.safetensors")
    names = list(tensors)
    parts = [names[i::files] for i in range(files)]
    weight_map: dict[str, str] = {}
    for i, part in enumerate(parts, start=1):
        file = "pytorch_model.bin" if files == 1 else f"pytorch_model-{i:05}-of-{files:05}.bin"
        content = {name: tensors[name] for name in part}
        torch.save(content, checkpoint / file, _use_new_zipfile_serialization=not legacy)
        weight_map |= dict.fromkeys(part, file)
    if files > 1:
        (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (checkpoint / "model.safetensors").unlink()
    return checkpoint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("how", [{}, {"legacy": True}, {"files": 3}], ids=["zip", "legacy", "shards"])
def test_pickled_weights_are_converted_value_by_value(tmp_path: Path, how, dtype):
    base = write_checkpoint(tmp_path / "base", **SMALL | {"dtype": dtype})
    other = pickled(shutil.copytree(base, tmp_path / "other"), **how)
    assert needs_new_weights(other, None)
    assert not needs_new_weights(base, None)
    before, after = open_checkpoint(base), prepare(other, None, tmp_path / "out")
    assert before.tensors.keys() == after.tensors.keys()
    for name in before.tensors:
        expected, result = values(before, name), values(after, name)
        assert result.dtype == expected.dtype
        assert result.tobytes() == expected.tobytes()


def test_tensors_that_share_memory_buffers_and_wrappers_are_no_trouble(tmp_path: Path):
    base = pickled(write_checkpoint(tmp_path / "base", **SMALL | {"dtype": "bfloat16"}))
    state: dict[str, Any] = torch.load(base / "pytorch_model.bin", weights_only=True)
    embedding = state["model.embed_tokens.weight"]
    state["model.embed_tokens.weight"] = embedding.T.contiguous().T
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    state["model.rotary_emb.inv_freq"] = torch.ones(16, dtype=torch.float64)
    state["position_ids"] = torch.arange(7)
    torch.save({"state_dict": state}, base / "pytorch_model.bin")
    checkpoint = prepare(base, None, tmp_path / "out")
    assert checkpoint.config.decoder.tie_word_embeddings
    assert not checkpoint.notes
    expected = embedding.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    assert np.array_equal(values(checkpoint, "model.embed_tokens.weight"), expected)


class Payload:
    """Unpickled the usual way, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_never_runs(tmp_path: Path, legacy):
    base = write_checkpoint(tmp_path / "base", **SMALL)
    (base / "model.safetensors").unlink()
    trap = tmp_path / "ran"
    content = {"model.norm.weight": torch.ones(3), "extra": Payload(trap)}
    torch.save(content, base / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="holds more than tensors"):
        export_checkpoint(base, tmp_path / "bundle")
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(trap)))
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        export_checkpoint(base, tmp_path / "bundle")
    assert not trap.exists()
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04cut", b"\x80\x02}."], ids=["empty", "cut", "plain pickle"]
)
def test_a_file_that_is_no_pytorch_file_is_named(tmp_path: Path, content):
    base = write_checkpoint(tmp_path / "base", **SMALL)
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        prepare(base, None, tmp_path / "out")


@pytest.mark.parametrize("name", ["../outside.bin", "missing.bin", 3, ["x"], None])
def test_an_index_of_pickled_files_names_files_of_its_directory(tmp_path: Path, name):
    base = pickled(write_checkpoint(tmp_path / "base", **SMALL), files=2)
    (base / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(UserError, match=re.escape(f"found {name}")):
        prepare(base, None, tmp_path / "out")


def test_the_bundle_of_pickled_weights_is_that_of_safetensors(tmp_path: Path):
    base = write_checkpoint(tmp_path / "base", **SMALL)
    expected = load_reference(base).state_dict()
    export_checkpoint(pickled(base, files=2), tmp_path / "bundle")
    open_bundle(tmp_path / "bundle")
    loaded = load_reference(tmp_path / "bundle").state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in expected.items())
    with pytest.raises(UserError, match="holds pickled weights"):
        open_checkpoint(base)
