"""What the exported graphs look like, before anything runs them."""

import re
from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from examples.random_checkpoint import write_checkpoint
from export.checkpoint.tensors import Checkpoint, open_checkpoint
from export.contract import GraphContract, decoder_contract, vision_contract
from export.graphs.assemble import build_graph
from export.graphs.lint import check_graph, lint
from export.weights.by_reference import ByReference
from plugins.registry import OP_DOMAIN, SIGNATURES

ONNX_DTYPES = {"float32": 1, "bfloat16": 16, "int32": 6, "int64": 7}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("graphs") / "checkpoint"
    write_checkpoint(directory, num_hidden_layers=3, vision_depth=2, dtype="bfloat16", shards=2)
    return open_checkpoint(directory)


@pytest.fixture(scope="module")
def models(checkpoint: Checkpoint) -> dict[str, ir.Model]:
    source = ByReference(checkpoint)
    return {name: build_graph(name, source, "bfloat16") for name in ("vision", "decoder")}


@pytest.fixture(scope="module")
def protos(models: dict[str, ir.Model]) -> dict[str, onnx.ModelProto]:
    return {name: ir.to_proto(model) for name, model in models.items()}


@pytest.fixture(scope="module")
def contracts(checkpoint: Checkpoint) -> dict[str, GraphContract]:
    makers = {"vision": vision_contract, "decoder": decoder_contract}
    return {name: make(checkpoint.config, "bfloat16") for name, make in makers.items()}


@pytest.mark.parametrize("name", ["vision", "decoder"])
def test_inputs_and_outputs_are_the_contract_s(name, protos, contracts):
    graph, contract = protos[name].graph, contracts[name]
    for values, specs in ((graph.input, contract.inputs), (graph.output, contract.outputs)):
        assert [value.name for value in values] == [spec.name for spec in specs]
        for value, spec in zip(values, specs, strict=True):
            tensor = value.type.tensor_type
            assert tensor.elem_type == ONNX_DTYPES[spec.dtype], spec.name
            dims = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
            assert dims == spec.shape, spec.name
            assert value.doc_string == spec.doc


@pytest.mark.parametrize("name", ["vision", "decoder"])
def test_the_checker_and_the_lint_pass(name, models):
    check_graph(models[name])


def test_the_lint_notices_a_body_that_goes_missing(protos):
    broken = onnx.ModelProto()
    broken.CopyFrom(protos["decoder"])
    del broken.functions[:]
    assert any("has no function body" in finding for finding in lint(broken))


def test_every_weight_points_at_its_own_bytes(protos, checkpoint):
    pointers: dict[str, tuple[str, int, int]] = {}
    for proto in protos.values():
        for tensor in proto.graph.initializer:
            if tensor.external_data:
                entry = {item.key: item.value for item in tensor.external_data}
                pointers[tensor.name] = (entry["location"], int(entry["offset"]), int(entry["length"]))
    assert pointers == {
        tensor.name: (tensor.path.name, tensor.offset_bytes, tensor.length_bytes)
        for tensor in checkpoint.tensors.values()
    }


def test_graphs_hold_tables_but_no_weights(protos):
    for proto in protos.values():
        embedded = [tensor.name for tensor in proto.graph.initializer if not tensor.external_data]
        assert [name.rpartition(".")[2] for name in embedded] == ["frequencies", "axis_of"]
        assert proto.ByteSize() < 100_000


def test_each_layer_calls_each_of_its_ops_once(protos):
    for name, op, per_layer in (("vision", "QvPatchAttention", 2), ("decoder", "QvCachedAttention", 3)):
        counts = Counter(node.op_type for node in protos[name].graph.node if node.domain == OP_DOMAIN)
        assert counts == {"QvRotary": per_layer, op: per_layer}


def test_ops_are_top_level_calls_with_their_attributes(protos):
    signatures = {signature.name: signature for signature in SIGNATURES}
    for proto in protos.values():
        for node in proto.graph.node:
            if node.domain == OP_DOMAIN:
                attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
                decoded = {
                    key: value.decode() if isinstance(value, bytes) else value
                    for key, value in attributes.items()
                }
                assert decoded == dict(signatures[node.op_type].attributes)


def test_nodes_are_named_after_modules(protos):
    names = {node.name for node in protos["decoder"].graph.node}
    assert len(names) == len(protos["decoder"].graph.node)
    assert {
        "/layers.2/self_attn/q_proj/MatMul",
        "/layers.0/self_attn/QvRotary",
        "/layers.1/mlp/down_proj/MatMul",
    } <= names
    assert all(re.match(r"/(embed|project|layers\.\d+)/", name) for name in names)


def test_no_shape_arithmetic_is_left_around_reshapes(protos):
    for proto in protos.values():
        layer_nodes = [node for node in proto.graph.node if re.match(r"/(layers|blocks)\.0/", node.name)]
        assert not {"Concat", "Squeeze", "Div", "Gather"} & {
            node.op_type for node in layer_nodes if "attn/" not in node.name
        }
        assert not {"Concat", "Squeeze", "Div"} & {node.op_type for node in layer_nodes}


def test_the_graphs_say_nothing_of_the_machine_that_made_them(protos):
    for proto in protos.values():
        text = proto.SerializeToString()
        assert str(Path(__file__).resolve().parents[3]).encode() not in text
        assert b"stack_trace" not in text


def test_a_float32_graph_casts_bfloat16_weights_once(checkpoint):
    proto = ir.to_proto(build_graph("decoder", ByReference(checkpoint), "float32"))
    weights = {tensor.name for tensor in proto.graph.initializer if tensor.external_data}
    casts = [node for node in proto.graph.node if node.op_type == "Cast" and node.input[0] in weights]
    assert sorted(node.input[0] for node in casts) == sorted(weights)
    assert all(node.op_type == "Cast" for node in proto.graph.node if set(node.input) & weights)
