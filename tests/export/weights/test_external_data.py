from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from export.weights.external_data import graph_problems
from export.weights.safetensors_file import read_safetensors_header
from tests.export.bundle_samples import graph_bytes, make_weights


@pytest.fixture
def stored(tmp_path: Path):
    return {"model.safetensors": read_safetensors_header(make_weights(tmp_path / "model.safetensors"))}


def external(name: str = "w", data_type: int = TensorProto.FLOAT, dims=(64, 33), **place: Any):
    tensor = TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def model_with(tensor, where: str = "graph") -> bytes:
    """A model with a tensor in one of the places where ONNX allows one."""
    model = onnx.ModelProto.FromString(graph_bytes(b"sample"))
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    inner = onnx.GraphProto(initializer=[tensor])
    if where == "graph":
        model.graph.initializer.append(tensor)
    elif where == "attribute":
        model.graph.node.append(node)
    elif where == "function":
        model.functions.add(name="f", domain="d").node.append(node)
    elif where == "default of a function":
        model.functions.add(name="f", domain="d").attribute_proto.append(node.attribute[0])
    elif where == "inner graph":
        model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))
    elif where == "inner graph's attribute":
        inner = onnx.GraphProto(node=[node])
        model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))
    elif where == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    else:
        model.training_info.add().initialization.CopyFrom(inner)
    return model.SerializeToString()


def test_a_whole_tensor_and_a_slice_of_one_are_sound(stored) -> None:
    [tensor] = [tensor for tensor in stored["model.safetensors"] if tensor.name == "a.weight"]
    place: dict[str, Any] = {
        "location": "model.safetensors",
        "offset": tensor.offset_bytes,
        "length": tensor.length_bytes,
    }
    assert graph_problems(model_with(external(**place)), stored) == []
    row = {**place, "offset": tensor.offset_bytes + 33 * 4, "length": 33 * 4}
    assert graph_problems(model_with(external(dims=(33,), **row)), stored) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"location": "../../secret/big.bin"}, "no weight file of the manifest"),
        ({"location": "/etc/passwd"}, "no weight file of the manifest"),
        ({"location": "config.json"}, "no weight file of the manifest"),
        ({"location": "./model.safetensors"}, "no weight file of the manifest"),
        ({"offset": -(1 << 20)}, "must be sizes"),
        ({"offset": "0x10"}, "must be sizes"),
        ({"offset": "\u0661"}, "must be sizes"),
        ({"offset": 10**30}, "must be sizes"),
        ({"offset": 8_000_000}, "not inside of a tensor"),
        ({"offset": 1 << 32}, "not inside of a tensor"),
        ({"offset": 0}, "not inside of a tensor"),
        ({"length": 64 * 33 * 4 + 4}, "not inside of a tensor"),
        ({"length": 64 * 33 * 4 - 4}, "its shape needs 8448"),
        ({"length": ""}, "must be sizes"),
        ({"dims": (64, -33)}, "which no weight has"),
        ({"dims": (1,) * 100_000}, "which no weight has"),
        ({"data_type": TensorProto.STRING}, "which no weight has"),
    ],
)
def test_weights_outside_of_recorded_tensors_are_named(stored, change, problem) -> None:
    [tensor] = [tensor for tensor in stored["model.safetensors"] if tensor.name == "a.weight"]
    place: dict[str, Any] = {
        "location": "model.safetensors",
        "offset": tensor.offset_bytes,
        "length": tensor.length_bytes,
    }
    [found] = graph_problems(model_with(external(**{**place, **change})), stored)
    assert found.startswith("w: ")
    assert problem in found


@pytest.mark.parametrize("entry", ["location", "offset", "length"])
def test_a_place_that_lacks_an_entry_is_named(stored, entry) -> None:
    place: dict[str, Any] = {"location": "model.safetensors", "offset": 8, "length": 8}
    del place[entry]
    assert len(graph_problems(model_with(external(**place)), stored)) == 1


@pytest.mark.parametrize(
    "where",
    [
        "attribute",
        "function",
        "default of a function",
        "inner graph",
        "inner graph's attribute",
        "sparse",
        "training",
    ],
)
def test_only_a_weight_of_the_graph_itself_may_be_external(stored, where) -> None:
    [tensor] = [tensor for tensor in stored["model.safetensors"] if tensor.name == "a.weight"]
    place: dict[str, Any] = {
        "location": "model.safetensors",
        "offset": tensor.offset_bytes,
        "length": tensor.length_bytes,
    }
    found = graph_problems(model_with(external(**place), where), stored)
    assert found
    assert all("only a weight of the graph itself" in problem for problem in found)


@pytest.mark.parametrize("content", [b"", b"vision graph", b"\x00" * 100, b"\x08\x0a"])
def test_what_is_no_graph_is_named(stored, content) -> None:
    [problem] = graph_problems(content, stored)
    assert "is not an ONNX graph" in problem


def test_many_problems_are_few_lines(stored) -> None:
    model = onnx.ModelProto.FromString(graph_bytes(b"sample"))
    model.graph.initializer.extend(external(name=f"w{i}", location="x") for i in range(1000))
    found = graph_problems(model.SerializeToString(), stored)
    assert len(found) == 11
    assert found[-1] == "and 990 more"


COLUMNS = {
    "[64, 33, 3, 9]": None,
    "[64, 33, 3, 10]": "means the columns",
    "[64, 33, 30, 36]": "means the columns",
    "[64, 34, 3, 9]": "has 8448 bytes, the matrix of its columns needs 8704",
    "[64, 33, 3]": "means the columns",
    "[64, 33, 3, true]": "means the columns",
    "[" * 150: "means the columns",
    "[64, 33, 3, 9" + " " * 10_000: "means the columns",
}


@pytest.mark.parametrize(("text", "problem"), COLUMNS.items(), ids=lambda text: str(text)[:20])
def test_columns_of_a_stored_matrix_are_inside_of_it(stored, text, problem) -> None:
    [tensor] = [tensor for tensor in stored["model.safetensors"] if tensor.name == "a.weight"]
    weight = external(
        dims=(64, 6), location="model.safetensors", offset=tensor.offset_bytes, length=tensor.length_bytes
    )
    weight.metadata_props.add(key="qv.slice", value=text)
    found = graph_problems(model_with(weight), stored)
    assert [problem in line for line in found] == ([] if problem is None else [True])
