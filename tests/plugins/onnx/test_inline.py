"""A body in the place of its calls computes the same, under names that no other call has."""

import copy

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from export.graphs.lint import lint
from plugins.onnx.inline import inline_calls
from plugins.onnx.native import choose_native_bodies
from plugins.registry import OP_DOMAIN, ROTARY, SIGNATURES
from plugins.rotary import onnx_functions as rotary
from tests.support.bundles import shared_bundle
from tests.support.op_models import normal, op_model


@pytest.fixture(scope="module", params=["vision", "decoder"])
def graph(request, tmp_path_factory):
    bundle = shared_bundle(tmp_path_factory, {"dtype": "bfloat16"})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bundle)  # where the checker looks for the weights
        yield _graph(bundle, request.param)


def _graph(bundle, name):
    model = onnx.load(bundle / f"{name}.onnx", load_external_data=False)
    choose_native_bodies(model)
    return model


def test_every_node_and_value_of_a_whole_graph_has_a_name_of_its_own(graph):
    model = copy.deepcopy(graph)
    inline_calls(model, [op.name for op in SIGNATURES])
    names = [node.name for node in model.graph.node]
    values = [output for node in model.graph.node for output in node.output if output]
    assert len(set(names)) == len(names) > len(graph.graph.node)
    assert len(set(values)) == len(values)
    assert "" not in names
    assert {output.name for output in model.graph.output} <= set(values)
    onnx.checker.check_model(model)
    assert list(lint(model)) == list(lint(graph))


def test_calls_that_were_not_asked_for_stay_with_their_functions(graph):
    model = copy.deepcopy(graph)
    inline_calls(model, [ROTARY.name])
    called = {node.op_type for node in model.graph.node if node.domain == OP_DOMAIN}
    assert ROTARY.name not in called
    assert called == {op.name for op in SIGNATURES} & {function.name for function in graph.functions} - {
        ROTARY.name
    }
    assert {function.name for function in model.functions} == {f.name for f in graph.functions} - {
        ROTARY.name
    }


def test_an_inlined_call_computes_what_the_call_did():
    rng = np.random.default_rng(0)
    inputs = [normal(rng, 5, 3, 16), normal(rng, 5, 1, 16), rng.integers(0, 9, (3, 5)).astype(np.int32)]
    inputs += [rng.random(8).astype(np.float32), rng.integers(0, 3, 8).astype(np.int32)]
    model = op_model(ROTARY, rotary.tensorrt_rtx(), inputs)
    feeds = dict(zip(ROTARY.inputs, inputs, strict=True))
    expected = ort.InferenceSession(model.SerializeToString()).run(None, feeds)
    model.graph.node[0].name = "/call"
    inline_calls(model, [ROTARY.name])
    assert not model.functions
    assert all(node.name.startswith("/call/") for node in model.graph.node)
    for result, right in zip(
        ort.InferenceSession(model.SerializeToString()).run(None, feeds), expected, strict=True
    ):
        np.testing.assert_array_equal(result, right)
