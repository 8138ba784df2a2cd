import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.errors import UserError
from qv_export.show.graph import FunctionFacts, GraphTensor, ModuleFacts, WeightFacts, graph_facts_from_file


def write_graph(path: Path, table_offset: int = 8) -> Path:
    """Y = Twice(x + bias), with an embedded bias and a bfloat16 table whose bytes are in a file that is not there."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3], doc_string="rows")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", None])
    table = TensorProto(name="table", data_type=TensorProto.BFLOAT16, dims=[1000, 7])
    table.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "model.safetensors"), ("offset", str(table_offset)), ("length", "14000")):
        table.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "bias"], ["sum"]),
            helper.make_node("Twice", ["sum"], ["y"], domain="qv"),
            helper.make_node("Add", ["bias", "bias"], ["unused"]),
        ],
        "g",
        [x, helper.make_tensor_value_info("bias", TensorProto.FLOAT, [3])],
        [y],
        [numpy_helper.from_array(np.ones(3, np.float32), "bias"), table],
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("qv", 1)]
    twice = helper.make_function(
        "qv", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], opsets
    )
    model = helper.make_model(
        graph, opset_imports=opsets, functions=[twice], producer_name="tester", ir_version=10
    )
    onnx.save(model, path)
    return path


def test_every_fact_of_a_graph_is_found_without_its_weight_file(tmp_path: Path) -> None:
    facts = graph_facts_from_file(write_graph(tmp_path / "g.onnx"))
    assert facts.inputs == (GraphTensor("x", "float32", ("B", 3), "rows"),)
    assert facts.outputs == (GraphTensor("y", "float32", ("B", "?"), ""),)
    assert facts.operators == {"Add": 2, "qv::Twice": 1}
    assert facts.functions == (FunctionFacts("qv::Twice", num_calls=1, num_nodes=1, takes_plugin=False),)
    assert facts.weights == (WeightFacts("float32", 1, 3, 12), WeightFacts("bfloat16", 1, 7000, 14000))
    assert facts.modules == (ModuleFacts("bias", 3, 12), ModuleFacts("table", 7000, 14000))
    assert facts.weight_files == ("model.safetensors",)
    assert facts.opsets == {"ai.onnx": 24, "qv": 1}
    assert (facts.producer, facts.ir_version) == ("tester", 10)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x0a", b"\xff" * 100])
def test_what_is_no_graph_is_the_users_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"g\.onnx"):
        graph_facts_from_file(path)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_never_ends_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "g.onnx"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=f"is not a regular file but a {kind}"):
        graph_facts_from_file(path)
