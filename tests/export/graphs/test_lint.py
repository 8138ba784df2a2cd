import onnx
import pytest
from onnx import TensorProto, helper

from export.graphs.lint import lint


def model_of(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        '<ir_version: 11, opset_import: ["" : 24, "qv" : 1, "other" : 1]>\n' + text
    )


SOUND = """
graph (float[N] x) => (float[N] y) { y = qv.QvThing(x) }
<domain: "qv", opset_import: ["" : 24]> QvThing (x) => (y) { y = Relu(x) }
"""

CALL = "graph (float[N] x) => (float[N] y) { y = qv.QvThing(x) }"

TRAPS = {
    "two functions of one name": (
        SOUND + """<domain: "other", opset_import: ["" : 24]> QvThing (x) => (y) { y = Neg(x) }""",
        "2 functions are named QvThing",
    ),
    "a function named like a built-in op": (
        """graph (float[N] x) => (float[N] y) { y = qv.Relu(x) }
        <domain: "qv", opset_import: ["" : 24]> Relu (x) => (y) { y = Neg(x) }""",
        "function Relu is named like a built-in op",
    ),
    "a plugin inside a function": (
        """graph (float[N] x) => (float[N] y) { y = qv.QvOuter(x) }
        <domain: "qv", opset_import: ["" : 24, "qv" : 1]>
        QvOuter (x) => (y) { y = qv.QvThing<plugin_namespace = "qv">(x) }
        <domain: "qv", opset_import: ["" : 24]> QvThing <plugin_namespace> (x) => (y) { y = Relu(x) }""",
        "QvThing asks for a plugin inside function QvOuter",
    ),
    "an op without a body": (CALL, "QvThing has no function body"),
    "an omitted input": (
        CALL + """<domain: "qv", opset_import: ["" : 24]> QvThing (x, z) => (y) { y = Add(x, z) }""",
        "must give all 2 inputs",
    ),
    "an unnamed output": (
        CALL + """<domain: "qv", opset_import: ["" : 24]> QvThing (x) => (y, z) { y = Relu(x) z = Neg(x) }""",
        "must name all 2 outputs",
    ),
    "cached standard attention": (
        """graph (float[B, H, S, D] q, float[B, H, L, D] past) => (float[B, H, S, D] y) {
            y = Attention(q, q, q, , past, past)
        }""",
        "has past_key or past_value",
    ),
    "attention with valid lengths": (
        """graph (float[B, H, S, D] q, int64[B] lengths) => (float[B, H, S, D] y) {
            y = Attention(q, q, q, , , , lengths)
        }""",
        "has nonpad_kv_seqlen",
    ),
    "attention with mask and causality": (
        """graph (float[B, H, S, D] q, bool[S, S] mask) => (float[B, H, S, D] y) {
            y = Attention<is_causal = 1>(q, q, q, mask)
        }""",
        "is causal and has a mask",
    ),
    "attention with more outputs": (
        "graph (float[B, H, S, D] q) => (float[B, H, S, D] y) { y, key = Attention(q, q, q) }",
        "has more than one output",
    ),
    "an op whose output size depends on values": (
        "graph (float[N] x) => (int64[1, K] y) { y = NonZero(x) }",
        "cannot import NonZero",
    ),
}


def test_a_sound_graph_has_no_findings():
    assert lint(model_of(SOUND)) == []


@pytest.mark.parametrize(("text", "finding"), TRAPS.values(), ids=TRAPS)
def test_each_trap_is_found_alone(text, finding):
    (found,) = lint(model_of(text))
    assert finding in found


def test_unsigned_4_bit_weights_are_found():
    model = model_of(SOUND)
    model.graph.initializer.append(helper.make_tensor("packed", TensorProto.UINT4, [2], b"\x21", raw=True))
    (found,) = lint(model)
    assert "packed is UINT4" in found
