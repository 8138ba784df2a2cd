import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from export.graphs.simplify import simplify_reshapes

# As tracing writes them: the target is computed from Shape of some value, dim by dim.
FLATTEN = """
g (float[B, S, 4, 8] x) => (float[B, S, 32] y) {
    b = Shape<start = 0, end = 1>(x)
    s = Shape<start = 1, end = 2>(x)
    c = Constant<value_ints = [32]>()
    target = Concat<axis = 0>(b, s, c)
    y = Reshape<allowzero = 1>(x, target)
}"""
PACK = """
g (float[B, S, 8] x) => (float[BS, 8] y) {
    b = Shape<start = 0, end = 1>(x)
    s = Shape<start = 1, end = 2>(x)
    bs = Mul(b, s)
    c = Constant<value_ints = [8]>()
    target = Concat<axis = 0>(bs, c)
    y = Reshape<allowzero = 1>(x, target)
}"""
UNPACK = """
g (float[BS, 8] x, float[B, S, 8] like) => (float[B, S, 8] y) {
    b = Shape<start = 0, end = 1>(like)
    s = Shape<start = 1, end = 2>(like)
    c = Constant<value_ints = [8]>()
    target = Concat<axis = 0>(b, s, c)
    y = Reshape<allowzero = 1>(x, target)
}"""

UNPACK_BY_INPUT = """
g (float[BS, 8] x, int64[3] target) => (float[B, S, 8] y) {
    same_target = Identity(target)
    y = Reshape<allowzero = 1>(x, same_target)
}"""


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model('<ir_version: 11, opset_import: ["" : 24]>\n' + text)


def simplified(text: str) -> onnx.ModelProto:
    model = ir.from_proto(parse(text))
    simplify_reshapes(model.graph)
    return ir.to_proto(model)


def op_types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(
    ("text", "target"), [(FLATTEN, [0, 0, 32]), (PACK, [-1, 8])], ids=["flatten", "pack"]
)
def test_a_target_with_one_unknown_becomes_a_constant(text, target):
    model = simplified(text)
    assert op_types(model) == ["Constant", "Reshape"]
    assert list(model.graph.node[0].attribute[0].ints) == target


def test_a_target_with_two_unknowns_becomes_the_shape_of_a_twin():
    model = simplified(UNPACK)
    assert op_types(model) == ["Shape", "Reshape"]
    assert list(model.graph.node[0].input) == ["like"]


def test_without_a_twin_the_computed_target_stays():
    assert op_types(simplified(UNPACK_BY_INPUT)) == op_types(parse(UNPACK_BY_INPUT))


@pytest.mark.parametrize("text", [FLATTEN, PACK, UNPACK], ids=["flatten", "pack", "unpack"])
def test_values_stay_the_same(text):
    sizes = {"B": 2, "S": 3, "BS": 6}
    feeds = {
        value.name: np.random.default_rng(0)
        .standard_normal(
            [sizes.get(dim.dim_param, dim.dim_value) for dim in value.type.tensor_type.shape.dim]
        )
        .astype(np.float32)
        for value in parse(text).graph.input
    }
    (before,) = ReferenceEvaluator(parse(text)).run(None, feeds)
    (after,) = ReferenceEvaluator(simplified(text)).run(None, feeds)
    np.testing.assert_array_equal(before, after)


def test_a_reshaped_weight_becomes_a_weight_of_that_shape():
    model = parse(
        """g (float[N, 6] x) => (float[N, 4] y) <float[4, 2, 3] w> {
            target = Constant<value_ints = [4, 6]>()
            flat = Reshape(w, target)
            y = Gemm<transB = 1>(x, flat)
        }"""
    )
    weight = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("flat", onnx.TensorProto.FLOAT, [4, 6]))
    graph = ir.from_proto(model).graph
    simplify_reshapes(graph)
    assert [node.op_type for node in graph] == ["Gemm"]
    assert graph.initializers["w"].shape == ir.Shape([4, 6])
