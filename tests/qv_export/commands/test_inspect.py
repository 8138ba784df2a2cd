import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from engines.backends import backend_of
from engines.sizing.limits import Limits
from engines.store import cache
from engines.store.cache import EngineRequest, key_inputs, writing_engine
from export.bundle import open_bundle, place_weights, writing_bundle
from export.errors import UserError
from export.records.engine_record import EngineRecord, read_engine_record
from export.records.manifest import FileRecord, content_key
from export.weights.safetensors_file import read_safetensors_header
from qv_export.commands.inspect import inspect
from qv_export.show.bundle import graph_tensor_rows
from qv_export.show.graph import GraphTensor
from tests.export.bundle_samples import fill
from tests.qv_export.show.test_graph import write_graph


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    weights = tmp_path / "model.safetensors"
    save_file({"table": np.zeros((1000, 7), ml_dtypes.bfloat16)}, weights)
    [table] = read_safetensors_header(weights)
    with writing_bundle(tmp_path / "bundle") as directory:
        manifest = fill(directory, place_weights([weights], directory, "copy"))
        graphs = {
            role: FileRecord.from_file(write_graph(directory / f"{role}.onnx", table.offset_bytes))
            for role in manifest.graphs
        }
        replace(manifest, graphs=graphs).write(directory)
    return tmp_path / "bundle"


def test_a_manifest_stands_for_its_bundle_and_other_json_is_no_graph(bundle: Path, tmp_path: Path) -> None:
    whole = CliRunner().invoke(inspect, [str(bundle), "--json"], catch_exceptions=False)
    of_manifest = CliRunner().invoke(
        inspect, [str(bundle / "manifest.json"), "--json"], catch_exceptions=False
    )
    assert of_manifest.stdout == whole.stdout
    (tmp_path / "other.json").write_text("{}")
    result = CliRunner().invoke(inspect, [str(tmp_path / "other.json")])
    assert isinstance(result.exception, UserError)


def test_a_page_is_named_after_what_was_looked_at(bundle: Path, tmp_path: Path) -> None:
    for path, title in ((bundle, "Bundle of checkpoint"), (bundle / "vision.onnx", "Graph vision.onnx")):
        page = tmp_path / "page.html"
        arguments = [str(path), "--html", str(page)]
        assert CliRunner().invoke(inspect, arguments, catch_exceptions=False).exit_code == 0
        text = page.read_text()
        assert f"<title>{title}</title>" in text
        assert text.count("<table>") == text.count("<thead>")


def test_a_graph_is_shown_with_its_interface(tmp_path: Path) -> None:
    result = CliRunner().invoke(inspect, [str(write_graph(tmp_path / "g.onnx"))], catch_exceptions=False)
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "in x float32 [B, 3] rows" in lines
    assert "qv::Twice 1 function of 1 nodes" in lines
    assert "bfloat16 1 7,000 14 kB" in lines
    assert "Weights, in model.safetensors" in lines


def test_numbered_tensors_of_one_kind_share_a_row() -> None:
    keys = [GraphTensor(f"past_key.{layer}", "float32", ("B", 2), f"layer {layer}") for layer in range(12)]
    odd = GraphTensor("past_key.12", "float32", ("B", 3), "layer 12")
    assert graph_tensor_rows("in", [GraphTensor("token_ids", "int64", ("B",), ""), *keys, odd]) == [
        ("in", "token_ids", "int64", "[B]", ""),
        ("in", "past_key.0 .. 11", "float32", "[B, 2]", "layer 0"),
        ("in", "past_key.12", "float32", "[B, 3]", "layer 12"),
    ]


def test_a_bundle_is_shown_with_its_manifest_and_both_graphs(bundle: Path) -> None:
    lines = CliRunner().invoke(inspect, [str(bundle)], catch_exceptions=False).stdout.splitlines()
    shown = [" ".join(line.split()) for line in lines]
    assert f"key {open_bundle(bundle).manifest.key}" in shown
    assert "not validated" in shown
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


# Engines and pages


def write_engine(bundle: Path) -> Path:
    """An engine's directory as `qv-export build` leaves it, with two layers in its record."""
    inputs = key_inputs(open_bundle(bundle).manifest.key, EngineRequest(backend_of("onnxruntime"), Limits()))
    inputs["sm"] = "89"
    caches = [
        {
            "name": f"past_key.{layer}",
            "dtype": "bfloat16",
            "shape": [-1, 2, 64, 8],
            "profiles": [
                {"minimum": [1, 2, 64, 8], "optimum": [1, 2, 64, 8], "maximum": [4, 2, 64, 8]},
                {"minimum": [4, 2, 64, 8], "optimum": [4, 2, 64, 8], "maximum": [4, 2, 64, 8]},
            ],
        }
        for layer in range(3)
    ]
    facts = {
        "graph": "decoder",
        "inputs": caches,
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [-1, 512], "profiles": []}],
        "layers": [
            {
                "name": "a",
                "type": "ATTENTION",
                "dtype": "bfloat16",
                "node": "/l.0/attn",
                "op": "QvCachedAttention",
            },
            {
                "name": "b",
                "type": "CAST",
                "dtype": "bfloat16",
                "node": "/l.0/attn",
                "op": "QvCachedAttention",
            },
            {"name": "c", "type": "CAST", "dtype": "int64", "node": "/l.0/cast", "op": ""},
        ],
        "ops": {"QvCachedAttention": "native"},
        "warnings": [{"message": "mind <the gap>", "count": 3}],
        "notes": ["QvCachedAttention: folded"],
        "seconds": 1.25,
        "peak_rss_bytes": 10**9,
        "engine_bytes": 5,
        "weights_bytes": 1000,
        "activation_bytes": [2000, 30],
    }
    with writing_engine(bundle, content_key(inputs)) as scratch:
        assert scratch is not None
        (scratch / "decoder.engine").write_bytes(b"12345")
        files = (FileRecord.from_file(scratch / "decoder.engine"),)
        record = EngineRecord(
            content_key(inputs), inputs, "onnxruntime", (89,), {"max_batch": 8}, (), None, "now", 2.5, files,
            {"decoder": facts},
        )  # fmt: skip
        (scratch / "engine.json").write_text(record.to_json())
    return bundle / "engines" / record.key


@pytest.mark.parametrize("name", ["", "engine.json", "decoder.engine"])
def test_an_engine_is_shown_with_profiles_ops_and_layers(bundle: Path, name: str) -> None:
    path = write_engine(bundle) / name
    result = CliRunner().invoke(inspect, [str(path)], catch_exceptions=False)
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "state up to date" in lines
    assert "in past_key.0 .. 2 bfloat16 prefill [1, 2, 64, 8] .. [1, 2, 64, 8] .. [4, 2, 64, 8]" in lines
    assert "decode [4, 2, 64, 8]" in lines
    assert "out logits float32 [?, 512]" in lines
    assert "QvCachedAttention native layer of the library 1 2" in lines
    assert "CAST int64 1" in lines
    assert "3 mind <the gap>" in lines
    assert "QvCachedAttention: folded" in lines
    assert any("activations prefill 2 kB, decode 30 B" in line for line in lines)


def test_an_engine_whose_files_or_tools_changed_is_called_stale(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_engine(bundle)
    (directory / "decoder.engine").write_bytes(b"123")
    monkeypatch.setattr(cache, "tool_versions", lambda target: {"onnxruntime": "99.0"})
    content = json.loads(
        CliRunner().invoke(inspect, [str(directory), "--json"], catch_exceptions=False).stdout
    )
    reasons = content["engine"]["stale"]
    assert "decoder.engine has 3 bytes, recorded were 5" in reasons
    assert any(reason.endswith("wanted 99.0") for reason in reasons)
    assert content["engine"]["facts"]["decoder"]["layers"][0]["type"] == "ATTENTION"


def test_an_engine_is_not_called_stale_because_a_library_is_missing_here(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_engine(bundle)
    before = dict(read_engine_record(directory).inputs)
    monkeypatch.setattr(
        cache, "tool_versions", lambda _: {name: before[name] for name in ("qv-export", "onnx")}
    )
    content = json.loads(
        CliRunner().invoke(inspect, [str(directory), "--json"], catch_exceptions=False).stdout
    )
    assert content["engine"]["stale"] == []
    assert content["engine"]["unknown"] == [f"onnxruntime {before['onnxruntime']} is not installed here"]
    shown = CliRunner().invoke(inspect, [str(directory)], catch_exceptions=False).stdout
    assert "cannot be judged here" in shown


def test_a_bundle_lists_its_engines(bundle: Path) -> None:
    key = write_engine(bundle).name
    shown = CliRunner().invoke(inspect, [str(bundle)], catch_exceptions=False).stdout
    assert f"{key} onnxruntime SM89 5 B up to date" in [" ".join(line.split()) for line in shown.splitlines()]
    content = json.loads(CliRunner().invoke(inspect, [str(bundle), "--json"], catch_exceptions=False).stdout)
    assert [engine["key"] for engine in content["engines"]] == [key]


def test_a_page_stands_alone_and_escapes_what_it_shows(bundle: Path, tmp_path: Path) -> None:
    page_path = tmp_path / "engine.html"
    CliRunner().invoke(inspect, [str(write_engine(bundle)), "--html", str(page_path)], catch_exceptions=False)
    page = page_path.read_text()
    assert "mind &lt;the gap&gt;" in page
    assert "<svg" in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "http" not in page
    assert "all 3 layers" in page
    assert page.count("<td>") == page.count("</td>")


def test_a_page_that_cannot_be_written_is_the_users_mistake(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Choose another place for --html"):
        CliRunner().invoke(
            inspect, [str(bundle), "--html", str(tmp_path / "nowhere" / "page.html")], catch_exceptions=False
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": 5},
        {"inputs": [{"name": 1}]},
        {"layers": [{}]},
        {"layers": None},
        {"ops": {"QvRotary": "magic"}},
        {"seconds": "long"},
        {"peak_rss_bytes": None},
        {"graph": "../../secret"},
        {"warnings": [7]},
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_facts_that_no_builder_writes_are_the_engines_fault(
    bundle: Path, changes: dict[str, Any], as_json: bool
) -> None:
    directory = write_engine(bundle)
    content = json.loads((directory / "engine.json").read_text())
    content["facts"]["decoder"].update(changes)
    (directory / "engine.json").write_text(json.dumps(content))
    for path in (directory, bundle):
        result = CliRunner().invoke(inspect, [str(path), *(["--json"] if as_json else [])])
        assert isinstance(result.exception, UserError), result.exception
        assert "holds facts that no builder writes" in str(result.exception)
