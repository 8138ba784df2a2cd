"""TensorRT-RTX builds the graphs of ranks on the CPU: its own collectives, and columns handed over from memory."""

import ctypes

import numpy as np
import onnx
import pytest

from engines.backends.tensorrt.build.builder import BuildOptions, build_engine
from engines.backends.tensorrt.build.network import MappedWeights, graph_for_parser
from engines.sizing.limits import Limits
from export.bundle import open_bundle
from export.graphs.lint import lint
from export.weights.safetensors_file import read_safetensors_header
from export.weights.values import read_values
from plugins.onnx.native import choose_native_bodies
from tests.support.bundles import shared_bundle

pytestmark = pytest.mark.tensorrt
LIMITS = Limits(max_patches=1024, max_batch=2, max_context=256, max_prompt_tokens=64)
LAYERS, RANKS = 2, 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    sizes = {
        "dtype": "bfloat16",
        "hidden_size": 384,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "num_hidden_layers": LAYERS,
    }
    return open_bundle(shared_bundle(tmp_path_factory, sizes, tensor_parallel=RANKS))


@pytest.mark.parametrize("rank", range(RANKS))
def test_every_rank_is_built_with_two_sums_a_layer_one_of_embeddings_and_one_gather(bundle, tmp_path, rank):
    graph = f"decoder.rank{rank}"
    options = BuildOptions(target="tensorrt-rtx", sm=(80,))
    facts = build_engine(bundle, graph, LIMITS, options, tmp_path / "engine", lambda *_: None)
    collectives = [layer for layer in facts.layers if layer.type == "DIST_COLLECTIVE"]
    assert [layer.op for layer in collectives] == ["QvAllReduce"] * (2 * LAYERS + 1) + ["QvAllGather"]
    assert facts.ops["QvAllReduce"] == facts.ops["QvAllGather"] == "native"
    caches = {tensor.name: tensor.shape for tensor in facts.inputs if tensor.name.startswith("past_")}
    assert {shape[1] for shape in caches.values()} == {1}
    assert len(caches) == 2 * LAYERS


def test_columns_are_handed_over_from_memory_and_rows_from_the_mapped_file(bundle):
    [file] = [bundle.directory / record.name for record in bundle.manifest.weights]
    stored = {tensor.name: tensor for tensor in read_safetensors_header(file)}
    name = "model.layers.1.mlp.down_proj.weight"
    whole = read_values(stored[name]).view(np.uint16)
    for rank in range(RANKS):
        model = graph_for_parser(bundle.graph(f"decoder.rank{rank}"), "fused", 256)
        weights = MappedWeights(model, bundle.directory)
        given = {name: (address, size) for name, address, size in weights}
        external = {weight.name for weight in model.graph.initializer if weight.external_data}
        assert set(given) == external
        address, size = given[name]
        half = whole.shape[1] // RANKS
        expected = np.ascontiguousarray(whole[:, rank * half : (rank + 1) * half])
        assert ctypes.string_at(address, size) == expected.tobytes()


def test_the_native_graph_is_sound_and_a_runtime_without_the_layers_still_asks_for_ranks(bundle):
    model = onnx.load(bundle.graph("decoder.rank1"), load_external_data=False)
    choose_native_bodies(model)
    assert lint(model) == []
    assert {node.op_type for node in model.graph.node} >= {"QvAllReduce", "QvAllGather"}
    assert sum(function.name == "DistCollective" for function in model.functions) == 1
