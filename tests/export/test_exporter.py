import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from examples.random_checkpoint import write_checkpoint
from export import exporter
from export.bundle import open_bundle
from export.errors import UserError
from export.exporter import export_checkpoint
from export.models.qwen2_vl.model import load_reference

SMALL: dict[str, Any] = {"num_hidden_layers": 1, "vision_depth": 1, "vocab_size": 400, "dtype": "float32"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small", shards=2, **SMALL)


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A bundle and the phases that its export told."""
    output = tmp_path_factory.mktemp("bundle") / "deep" / "bundle"
    phases: list[str] = []
    fractions: list[float] = []

    def told(phase: str, fraction: float) -> None:
        fractions.append(fraction)
        if phase not in phases[-1:]:  # told again while the weights are copied
            phases.append(phase)

    export_checkpoint(checkpoint, output, progress=told)
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)
    return output, phases


@pytest.fixture
def no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake must be found before the graphs are traced, which takes seconds."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("traced before the mistake was found")

    for name in ("_vision_graph", "_decoder_graphs"):
        monkeypatch.setattr(exporter, name, refuse)


@pytest.fixture
def quick_graphs(exported: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs of the module's bundle again: what comes after tracing is tested without tracing."""
    import onnx_ir as ir

    def load(name: str) -> dict[str, ir.Model]:
        return {name: ir.load(exported[0] / f"{name}.onnx")}

    monkeypatch.setattr(exporter, "_vision_graph", lambda *arguments: load("vision"))
    monkeypatch.setattr(exporter, "_decoder_graphs", lambda *arguments: load("decoder"))


def test_a_bundle_opens_and_says_where_it_comes_from(checkpoint: Path, exported):
    output, phases = exported
    manifest = open_bundle(output).manifest
    assert manifest.source.name == checkpoint.name
    assert (manifest.dtype, manifest.weights_mode) == ("float32", "copy")
    assert set(manifest.tools) == {"torch", "onnx", "onnx-ir", "onnxscript"}
    assert [record.name for record in manifest.weights] == [
        path.name for path in sorted(checkpoint.glob("*.safetensors"))
    ]
    assert {"config.json", "tokenizer.json", "preprocessor_config.json"} <= {
        file.name for file in manifest.files
    }
    assert [phase.split()[0] for phase in phases] == ["reading", "tracing", "tracing", "placing", "writing"]


def test_initializers_point_at_the_checkpoints_own_bytes(checkpoint: Path, exported):
    weights = {
        name: array for path in checkpoint.glob("*.safetensors") for name, array in load_file(path).items()
    }
    seen = set()
    for graph in ("vision", "decoder"):
        model = onnx.load(exported[0] / f"{graph}.onnx", load_external_data=False)
        for initializer in model.graph.initializer:
            if not initializer.external_data:
                continue
            place = {entry.key: entry.value for entry in initializer.external_data}
            content = (exported[0] / place["location"]).read_bytes()
            start = int(place["offset"])
            stored = np.frombuffer(content[start : start + int(place["length"])], "<f4")
            # The patch embedding's convolution kernel is read as a matrix: [E, 3, 2, 14, 14] as [E, 1176].
            weight = weights[initializer.name].reshape(initializer.dims)
            assert np.array_equal(stored.reshape(initializer.dims), weight)
            seen.add(initializer.name)
    assert seen == set(weights)


def test_a_bundle_is_itself_a_checkpoint_that_the_reference_loads(checkpoint: Path, exported):
    assert len(list(exported[0].glob("*.safetensors"))) > 1
    expected = load_reference(checkpoint).state_dict()
    loaded = load_reference(exported[0]).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_node_names_tell_the_layer_and_nothing_of_this_machine(exported):
    for graph in ("vision", "decoder"):
        path = exported[0] / f"{graph}.onnx"
        model = onnx.load(path, load_external_data=False)
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)
        assert all(value.doc_string for value in (*model.graph.input, *model.graph.output))
        assert str(Path.home()).encode() + b"/" not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()
    assert any(name.startswith("/layers.0/self_attn/") for name in names)


@pytest.mark.parametrize("layout", ["published", "nested"])
def test_a_bundle_says_which_head_it_holds(tmp_path, caplog, layout):
    """The stored head outweighs the flag, in the graph, in what later reads the bundle, and in a warning."""
    directory = write_checkpoint(tmp_path / "tied", layout=layout, **SMALL)
    tensors = load_file(directory / "model.safetensors")
    (embedding,) = (array for name, array in tensors.items() if name.endswith("embed_tokens.weight"))
    save_file(tensors | {"lm_head.weight": embedding[::-1].copy()}, directory / "model.safetensors")
    export_checkpoint(directory, tmp_path / "bundle")
    assert "lm_head.weight is stored and differs" in caplog.text
    assert str(directory) in caplog.text

    bundle = open_bundle(tmp_path / "bundle")
    assert not bundle.config.decoder.tie_word_embeddings
    reference = load_reference(bundle.directory)
    assert np.array_equal(reference.lm_head.weight.numpy(), embedding[::-1])
    graph = onnx.load(bundle.graph("decoder"), load_external_data=False).graph
    assert "lm_head.weight" in {initializer.name for initializer in graph.initializer}


def test_strict_refuses_what_would_be_a_warning(checkpoint, tmp_path, no_tracing):
    other = shutil.copytree(checkpoint, tmp_path / "other")
    config = json.loads((other / "config.json").read_text()) | {"architectures": ["ColQwen2"]}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"refused by --strict:\n- architectures is \['ColQwen2'\]"):
        export_checkpoint(other, tmp_path / "bundle", strict=True)
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_never_chooses_an_id_without_a_token(tmp_path):
    directory = write_checkpoint(tmp_path / "padded", **SMALL)
    settings = json.loads((directory / "generation_config.json").read_text())
    (directory / "generation_config.json").write_text(json.dumps(settings | {"suppress_tokens": [7]}))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    padding = [index for index in range(400) if tokenizer.id_to_token(index) is None]
    export_checkpoint(directory, tmp_path / "bundle")
    assert len(padding) == 2
    assert open_bundle(tmp_path / "bundle").generation_config.suppress_tokens == (7, *padding)


def test_a_second_export_replaces_the_first_and_has_the_same_key(
    checkpoint, exported, quick_graphs, tmp_path
):
    first = export_checkpoint(checkpoint, tmp_path / "bundle", weights="link")
    second = export_checkpoint(checkpoint, tmp_path / "bundle", weights="copy")
    assert open_bundle(tmp_path / "bundle").manifest == second
    assert first.key == second.key


def test_other_weights_have_another_key(checkpoint, exported, quick_graphs, tmp_path):
    other = write_checkpoint(tmp_path / "other", shards=2, seed=1, **SMALL)
    manifest = export_checkpoint(other, tmp_path / "bundle")
    assert manifest.key != open_bundle(exported[0]).manifest.key


# Mistakes


def test_an_unknown_dtype_is_refused_with_the_choices(checkpoint, tmp_path, no_tracing):
    with pytest.raises(UserError, match="'int8' is none of float32, float16, bfloat16"):
        export_checkpoint(checkpoint, tmp_path / "bundle", dtype="int8")
    assert not list(tmp_path.iterdir())


def test_a_broken_checkpoint_leaves_nothing(checkpoint, tmp_path, no_tracing):
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    shard = min(broken.glob("*.safetensors"))
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 4)
    with pytest.raises(UserError, match="truncated"):
        export_checkpoint(broken, tmp_path / "out" / "bundle")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_leaves_nothing(checkpoint, quick_graphs, tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("not a bundle")
    for output in (tmp_path / "file", tmp_path / "file" / "bundle", tmp_path / "mine"):
        with pytest.raises(UserError, match=str(output.parent)):
            export_checkpoint(checkpoint, output)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "mine", "thesis.tex"]


def test_a_failure_while_writing_keeps_the_last_good_bundle(
    checkpoint, exported, quick_graphs, tmp_path, monkeypatch
):
    output = tmp_path / "bundle"
    good = export_checkpoint(checkpoint, output)

    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnx_ir.save", full_disk)
    with pytest.raises(UserError, match="No space left"):
        export_checkpoint(checkpoint, output)
    assert open_bundle(output).manifest == good
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_checkpoint_that_could_not_answer_a_question_is_refused_before_tracing(
    checkpoint, tmp_path, no_tracing
):
    half = shutil.copytree(checkpoint, tmp_path / "half")
    (half / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        export_checkpoint(half, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "tokenizer.json", "config.json", "processor_config.json"]
)
@pytest.mark.usefixtures("no_tracing")
def test_a_companion_behind_a_link_to_elsewhere_is_not_exported(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    stranger = shutil.copytree(checkpoint, tmp_path / "stranger")
    (stranger / name).unlink(missing_ok=True)
    (stranger / name).symlink_to("/proc/self/environ")
    with pytest.raises(
        UserError, match=f"{name} is a link to /proc/[0-9]+/environ, outside of its directory"
    ):
        export_checkpoint(stranger, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "merges.txt", "vocab.json"])
@pytest.mark.usefixtures("no_tracing")
def test_a_pipe_in_a_checkpoint_is_refused_at_once(checkpoint: Path, tmp_path: Path, name: str) -> None:
    stranger = shutil.copytree(checkpoint, tmp_path / "stranger")
    (stranger / name).unlink(missing_ok=True)
    os.mkfifo(stranger / name)
    with pytest.raises(UserError, match=f"{name} is not a regular file but a pipe"):
        export_checkpoint(stranger, tmp_path / "bundle")


@pytest.mark.usefixtures("no_tracing")
def test_weights_that_are_a_pipe_are_refused_at_once(checkpoint: Path, tmp_path: Path) -> None:
    stranger = shutil.copytree(checkpoint, tmp_path / "stranger")
    shard = min(stranger.glob("*.safetensors"))
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(UserError, match=f"{shard.name} is not a regular file but a pipe"):
        export_checkpoint(stranger, tmp_path / "bundle")


@pytest.mark.usefixtures("quick_graphs")
def test_a_snapshot_of_a_hub_cache_is_exported_and_its_bundle_holds_no_link(
    checkpoint: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in checkpoint.iterdir():
        shutil.copyfile(path, blobs / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    export_checkpoint(snapshot, tmp_path / "bundle")
    assert not [path for path in (tmp_path / "bundle").rglob("*") if path.is_symlink()]
    assert open_bundle(tmp_path / "bundle").config.vision.depth == 1
