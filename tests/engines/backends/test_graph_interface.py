import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from engines.backends.graph_interface import require_interface
from engines.backends.onnxruntime.session import open_sessions
from export.bundle import Bundle, FileRecord, open_bundle
from export.contract import decoder_contract, vision_contract
from export.errors import UserError
from tests.support.bundles import shared_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(shared_bundle(tmp_path_factory, {"dtype": "float32"}))


def test_both_graphs_of_an_export_are_as_the_contract_says(bundle: Bundle) -> None:
    for name, contract in (("vision", vision_contract), ("decoder", decoder_contract)):
        path = bundle.directory / f"{name}.onnx"
        model = onnx.load(path, load_external_data=False)
        model.graph.output.add(name="a further output")
        require_interface(model, contract(bundle.config, "float32"), path)


def drop_input(graph: onnx.GraphProto) -> None:
    del graph.input[0]


def add_input(graph: onnx.GraphProto) -> None:
    graph.input.add(name="colour")


def change_size(graph: onnx.GraphProto) -> None:
    graph.input[-1].type.tensor_type.shape.dim[1].dim_value += 1


def drop_dimension(graph: onnx.GraphProto) -> None:
    del graph.input[-1].type.tensor_type.shape.dim[0]


def drop_output(graph: onnx.GraphProto) -> None:
    del graph.output[0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (drop_input, "no input 'token_ids'"),
        (add_input, "unknown input 'colour'"),
        (change_size, "input 'past_value"),
        (drop_dimension, "input 'past_value"),
        (drop_output, "no output 'logits'"),
    ],
)
def test_a_graph_of_another_interface_is_refused(
    bundle: Bundle, change: Callable[[onnx.GraphProto], None], problem: str
) -> None:
    path = bundle.graph("decoder")
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    with pytest.raises(UserError, match=r"is not the graph that its name and config\.json say") as refusal:
        require_interface(model, decoder_contract(bundle.config, "float32"), path)
    assert problem in str(refusal.value)


def rename_op(graph: onnx.GraphProto) -> None:
    graph.node[0].op_type = "Unheard"


def drop_node(graph: onnx.GraphProto) -> None:
    del graph.node[len(graph.node) // 2]


def loop(graph: onnx.GraphProto) -> None:
    graph.node[0].input[0] = graph.node[-1].output[0]


@pytest.mark.parametrize("change", [rename_op, drop_node, loop])
def test_a_graph_of_right_interface_that_its_runtime_refuses_is_the_bundles_fault(
    bundle: Bundle, tmp_path: Path, change: Callable[[onnx.GraphProto], None]
) -> None:
    directory = shutil.copytree(bundle.directory, tmp_path / "changed")
    model = onnx.load(directory / "decoder.onnx", load_external_data=False)
    change(model.graph)
    (directory / "decoder.onnx").write_bytes(model.SerializeToString())
    content = json.loads((directory / "manifest.json").read_text())
    content["graphs"]["decoder"] = vars(FileRecord.from_file(directory / "decoder.onnx"))
    (directory / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"refuses .*decoder\.onnx") as refusal:
        open_sessions(open_bundle(directory), capacity=64)
    assert refusal.value.remedy == "Export the checkpoint again."


def test_swapped_graphs_with_right_digests_are_the_bundles_fault(bundle: Bundle, tmp_path: Path) -> None:
    directory = shutil.copytree(bundle.directory, tmp_path / "swapped")
    (directory / "vision.onnx").rename(directory / "x")
    (directory / "decoder.onnx").rename(directory / "vision.onnx")
    (directory / "x").rename(directory / "decoder.onnx")
    content = json.loads((directory / "manifest.json").read_text())
    content["graphs"] = {
        name: vars(FileRecord.from_file(directory / f"{name}.onnx")) for name in ("vision", "decoder")
    }
    (directory / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"vision\.onnx is not the graph that its name"):
        open_sessions(open_bundle(directory), capacity=64)
