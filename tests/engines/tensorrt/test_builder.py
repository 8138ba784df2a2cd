"""TensorRT-RTX builds both graphs on the CPU, and says of them what the contract says."""

import json

import pytest

from engines.tensorrt.facts import EngineFacts
from engines.tensorrt.profiles import graph_contract
from export.config import load_config
from tests.engines.tensorrt.conftest import ARCHITECTURES, LIMITS

by_dtype = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
pytestmark = pytest.mark.tensorrt


@by_dtype
@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_an_engine_for_three_architectures_has_the_contracts_inputs_and_outputs(
    built, bundle_of, dtype, graph
):
    engine = built(dtype, graph)
    facts = engine.facts
    assert facts.sm == ARCHITECTURES
    assert engine.path.stat().st_size == facts.engine_bytes > 100_000
    contract = graph_contract(graph, load_config(bundle_of(dtype)), dtype)
    for tensors, specs in ((facts.inputs, contract.inputs), (facts.outputs, contract.outputs)):
        assert [(tensor.name, tensor.dtype) for tensor in tensors] == [
            (spec.name, spec.dtype) for spec in specs
        ]
        for tensor, spec in zip(tensors, specs, strict=True):
            expected = [
                LIMITS.max_context if dim == "L" else dim if isinstance(dim, int) else -1
                for dim in spec.shape
            ]
            assert list(tensor.shape) == expected, tensor.name


@by_dtype
def test_every_op_is_computed_by_what_was_chosen_for_it(built, dtype):
    assert built(dtype, "vision").facts.ops == {"QvPatchAttention": "native", "QvRotary": "decomposed"}
    assert built(dtype, "decoder").facts.ops == {"QvCachedAttention": "native", "QvRotary": "decomposed"}


def test_facts_survive_their_way_through_json(built):
    facts = built("bfloat16", "decoder").facts
    assert EngineFacts.from_json_object(json.loads(json.dumps(facts.to_json_object()))) == facts
