import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from export.bundle import open_bundle, place_weights, writing_bundle
from export.errors import UserError
from export.manifest import FileRecord
from qv_export.commands.inspect import inspect, tensor_rows
from qv_export.graph_facts import TensorFacts
from tests.export.bundle_samples import fill, make_weights
from tests.qv_export.test_graph_facts import write_graph


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    weights = make_weights(tmp_path / "model.safetensors")
    with writing_bundle(tmp_path / "bundle") as directory:
        manifest = fill(directory, place_weights([weights], directory, "copy"))
        graphs = {
            role: FileRecord.from_file(write_graph(directory / f"{role}.onnx")) for role in manifest.graphs
        }
        replace(manifest, graphs=graphs).write(directory)
    return tmp_path / "bundle"


def test_a_graph_is_shown_with_its_interface(tmp_path: Path) -> None:
    result = CliRunner().invoke(inspect, [str(write_graph(tmp_path / "g.onnx"))], catch_exceptions=False)
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "in x float32 [B, 3] rows" in lines
    assert "qv::Twice 1 function of 1 nodes" in lines
    assert "bfloat16 1 7,000 14 kB" in lines
    assert "in model.safetensors" in lines


def test_numbered_tensors_of_one_kind_share_a_row() -> None:
    keys = [TensorFacts(f"past_key.{layer}", "float32", ("B", 2), f"layer {layer}") for layer in range(12)]
    odd = TensorFacts("past_key.12", "float32", ("B", 3), "layer 12")
    assert tensor_rows("in", [TensorFacts("token_ids", "int64", ("B",), ""), *keys, odd]) == [
        ("in", "token_ids", "int64", "[B]", ""),
        ("in", "past_key.0 .. 11", "float32", "[B, 2]", "layer 0"),
        ("in", "past_key.12", "float32", "[B, 3]", "layer 12"),
    ]


def test_a_bundle_is_shown_with_its_manifest_and_both_graphs(bundle: Path) -> None:
    lines = CliRunner().invoke(inspect, [str(bundle)], catch_exceptions=False).stdout.splitlines()
    shown = [" ".join(line.split()) for line in lines]
    assert f"key {open_bundle(bundle).manifest.key}" in shown
    assert "verdict not validated" in shown
    assert "onnx 1.23.2" in shown
    assert sum(line.startswith(("vision.onnx:", "decoder.onnx:")) for line in shown) == 2


def test_json_holds_the_same_as_one_object(bundle: Path) -> None:
    content = json.loads(CliRunner().invoke(inspect, [str(bundle), "--json"], catch_exceptions=False).stdout)
    assert content["manifest"]["key"] == open_bundle(bundle).manifest.key
    assert [Path(graph["path"]).name for graph in content["graphs"]] == ["vision.onnx", "decoder.onnx"]
    assert content["graphs"][0]["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": ["B", 3], "doc": "rows"}
    ]


def test_a_changed_bundle_is_not_shown(bundle: Path) -> None:
    (bundle / "vision.onnx").write_bytes(b"other")
    with pytest.raises(UserError, match=r"vision\.onnx"):
        CliRunner().invoke(inspect, [str(bundle)], catch_exceptions=False)
