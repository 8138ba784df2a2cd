"""The traps of TensorRT's ONNX parser, and what TensorRT-RTX 1.7 does in each.

One table for two tests: the lint must find each trap, and TensorRT-RTX must still behave as the lint assumes. Where
NVIDIA changes the parser, the second test says so and names the rule to look at.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

Answer = Mapping[str, Any]


@dataclass(frozen=True)
class Trap:
    """A model that is valid ONNX, or looks so, and what comes of it."""

    text: str
    """ONNX's textual syntax: graph and functions."""
    finding: str
    """Words of the lint's first finding."""
    ends: Literal["refused", "unbuildable", "wrong", "built"]
    """The parser refuses it; it parses and no engine can be built; it builds something else, silently; all is well."""
    says: str = ""
    """Words of RTX's error, for "refused" and "unbuildable"."""
    shows: Callable[[Answer], bool] | None = None
    """For "wrong" and "built": what gives it away in the network."""
    initializers: tuple[onnx.TensorProto, ...] = ()
    num_findings: int = 1

    def model(self) -> onnx.ModelProto:
        imports = '"" : 24, "qv" : 1, "other" : 1'
        model = onnx.parser.parse_model(f"<ir_version: 11, opset_import: [{imports}]>\n{self.text}")
        model.graph.initializer.extend(self.initializers)
        return model


def _types(answer: Answer) -> list[str]:
    return [kind for kind, _ in answer["layers"]]


def _nested(depth: int) -> str:
    """A chain of functions, each calling the next."""
    functions = [
        f'<domain: "qv", opset_import: ["" : 24, "qv" : 1]> QvLevel{i} (x) => (y) {{ y = qv.QvLevel{i + 1}(x) }}'
        for i in range(1, depth)
    ]
    last = f'<domain: "qv", opset_import: ["" : 24]> QvLevel{depth} (x) => (y) {{ y = Relu(x) }}'
    return "\n".join(["graph (float[4] x) => (float[4] y) { y = qv.QvLevel1(x) }", *functions, last])


THING = '<domain: "qv", opset_import: ["" : 24]> QvThing (x) => (y) { y = Relu(x) }'
CALL = "graph (float[4] x) => (float[4] y) { y = qv.QvThing(x) }"


def _attention(inputs: str, body: str, outputs: str = "float16[1, 2, 8, 64] y") -> str:
    q = ", ".join(f"float16[1, 2, 8, 64] {name}" for name in "qkv")
    return f"graph ({q}{inputs}) => ({outputs}) {{ {body} }}"


_NATIVE_FUNCTION = """<domain: "qv", opset_import: ["" : 24]>
    TRT_Attention <query_form, kv_form, causal_kind, TRT_decomposable>
        (q, k, v, mask, query_lengths, kv_lengths) => (y) { y = Identity(q) }"""


def _native(attributes: str, inputs: str, dtype: str = "float16", head_dim: int = 64, more: str = "") -> str:
    """A graph that is one native attention, with the function that makes it valid ONNX."""
    q = ", ".join(f"{dtype}[1, 2, 8, {head_dim}] {name}" for name in "qkv")
    return f"""graph ({q}{more}) => ({dtype}[1, 2, 8, {head_dim}] y) {{
        y = qv.TRT_Attention<{attributes}>({inputs})
    }}
    {_NATIVE_FUNCTION}"""


_PADDED = 'query_form = "padded_bhnd", kv_form = "padded_bhnd"'
_PACKED = 'query_form = "packed_nhd", kv_form = "packed_nhd"'
_CACHE = """<domain: "qv", opset_import: ["" : 24]>
    TRT_KVCacheUpdate <mode> (past, update, at) => (present) { present = TensorScatter(past, update, at) }"""


def _cache_graph(capacity: str, outputs: str, body: str) -> str:
    return f"""graph (float16[1, 2, {capacity}, 64] past, float16[1, 2, 1, 64] update, int32[1] at) => ({outputs}) {{
        {body}
    }}
    {_CACHE}"""


_PRESENT = "float16[1, 2, {}, 64] present"
_UPDATE = 'present = qv.TRT_KVCacheUpdate<mode = "linear">({}, update, at)'

TRAPS: Mapping[str, Trap] = {
    # How nodes find their importer
    "a foreign op named like a built-in one": Trap(
        "graph (float[4] x) => (float[4] y) { y = other.Relu(x) }",
        "other.Relu: the parser ignores domains and would take the built-in Relu",
        "wrong",
        shows=lambda answer: _types(answer) == ["ACTIVATION"],
    ),
    "two functions of one name": Trap(
        f"""graph (float[4] x) => (float[4] y) {{ h = qv.QvThing(x) y = other.QvThing(h) }}
        {THING} <domain: "other", opset_import: ["" : 24]> QvThing (x) => (y) {{ y = Neg(x) }}""",
        "2 functions are named QvThing",
        "wrong",
        shows=lambda answer: _types(answer) == ["ACTIVATION", "ACTIVATION"],
    ),
    "a function named like a built-in op": Trap(
        """graph (float[4] x) => (float[4] y) { y = qv.Relu(x) }
        <domain: "qv", opset_import: ["" : 24]> Relu (x) => (y) { y = Neg(x) }""",
        "function Relu is named like a built-in op",
        "wrong",
        shows=lambda answer: _types(answer) == ["ACTIVATION"],
    ),
    "an op without a body": Trap(CALL, "QvThing has no function body", "refused", "Plugin not found"),
    # Functions
    "an omitted input": Trap(
        CALL + '<domain: "qv", opset_import: ["" : 24]> QvThing (x, z) => (y) { y = Add(x, z) }',
        "must give all 2 inputs",
        "refused",
        "input",
    ),
    "an unnamed output": Trap(
        CALL + '<domain: "qv", opset_import: ["" : 24]> QvThing (x) => (y, z) { y = Relu(x) z = Neg(x) }',
        "must name all 2 outputs",
        "refused",
        "output",
    ),
    "a function with an opset of its own": Trap(
        """graph (float[1, 4, 1] x) => (float[4, 1] y) { y = qv.QvThing(x) }
        <domain: "qv", opset_import: ["" : 11]> QvThing (x) => (y) { y = Squeeze<axes = [0]>(x) }""",
        "function QvThing imports opset 11, the model 24",
        "wrong",
        shows=lambda answer: answer["outputs"] == {"y": [4]},
    ),
    "functions nested too deep": Trap(_nested(25), "25 deep", "refused", "nest"),
    "a plugin inside a function": Trap(
        f"""graph (float[4] x) => (float[4] y) {{ y = qv.QvOuter(x) }}
        <domain: "qv", opset_import: ["" : 24, "qv" : 1]>
        QvOuter (x) => (y) {{ y = qv.QvThing<plugin_namespace = "qv">(x) }}
        {THING.replace("QvThing", "QvThing <plugin_namespace>")}""",
        "QvThing asks for a plugin inside function QvOuter",
        "wrong",
        shows=lambda answer: _types(answer) == ["ACTIVATION"],
    ),
    # The standard Attention
    "cached standard attention": Trap(
        _attention(", float16[1, 2, 8, 64] past", "y = Attention<scale = 1.0>(q, k, v, , past, past)"),
        "has past_key or past_value",
        "refused",
        "past",
    ),
    "attention with valid lengths": Trap(
        _attention(", int64[1] lengths", "y = Attention<scale = 1.0>(q, k, v, , , , lengths)"),
        "has nonpad_kv_seqlen",
        "wrong",
        shows=lambda answer: answer["read"] == ["q", "k", "v"],
    ),
    "attention with mask and causality": Trap(
        _attention(", bool[8, 8] mask", "y = Attention<is_causal = 1, scale = 1.0>(q, k, v, mask)"),
        "is causal and has a mask",
        "refused",
        "causal",
    ),
    "attention with more outputs": Trap(
        _attention("", "y, key = Attention<scale = 1.0>(q, k, v)"),
        "has more than one output",
        "refused",
        "output",
    ),
    "attention with capped scores": Trap(
        _attention("", "y = Attention<softcap = 30.0, scale = 1.0>(q, k, v)"),
        "has softcap",
        "refused",
        "softcap",
    ),
    "attention with a softmax of its own precision": Trap(
        _attention("", "y = Attention<softmax_precision = 1, scale = 1.0>(q, k, v)"),
        "has softmax_precision",
        "refused",
        "softmax precision",
    ),
    "attention scaled in its own dtype": Trap(
        _attention("", "y = Attention(q, k, v)"),
        "would be scaled in float16",
        "wrong",
        shows=lambda answer: answer["layers"].count(["ELEMENTWISE", "HALF"]) == 2,
    ),
    # Native attention
    "native attention with mask and causality": Trap(
        _native(f'{_PADDED}, causal_kind = "upper_left"', "q, k, v, mask", more=", bool[1, 2, 8, 8] mask"),
        "is causal and has a mask",
        "refused",
        "setMask",
    ),
    "native attention over packed rows": Trap(
        f"""graph (float16[8, 2, 64] q, float16[8, 2, 64] k, float16[8, 2, 64] v, int32[2] n)
            => (float16[8, 2, 64] y) {{
            y = qv.TRT_Attention<{_PACKED}, causal_kind = "none">(q, k, v, , n, n)
        }}
        {_NATIVE_FUNCTION}""",
        "is packed",
        "unbuildable",
        "no fused kernel",
    ),
    "native attention in float32": Trap(
        _native(f'{_PADDED}, causal_kind = "none"', "q, k, v", dtype="float"),
        "float32 and may not be decomposed",
        "unbuildable",
        "decomposable",
    ),
    "native attention with wide heads": Trap(
        _native(f'{_PADDED}, causal_kind = "none"', "q, k, v", head_dim=512),
        "heads of 512",
        "unbuildable",
        "decomposable",
    ),
    # The cache
    "a cache that is no input": Trap(
        _cache_graph("16", _PRESENT.format(16), "copy = Relu(past) " + _UPDATE.format("copy")),
        "must be an input of the graph",
        "unbuildable",
        "must be a network input",
    ),
    "a cache that is no output": Trap(
        _cache_graph("16", "float16[1, 2, 16, 64] y", _UPDATE.format("past") + " y = Relu(present)"),
        "must be an output of the graph",
        "unbuildable",
        "must be a network output",
    ),
    "a cache of dynamic capacity": Trap(
        _cache_graph("C", _PRESENT.format("C"), _UPDATE.format("past")),
        "capacity must be constant",
        "refused",
        "static sequence length",
    ),
    "a scattered cache that is no input": Trap(
        """graph (float16[1, 2, 16, 64] past, float16[1, 2, 1, 64] update, int64[1] at) => (float16[1, 2, 16, 64] y) {
            copy = Relu(past)
            y = TensorScatter(copy, update, at)
        }""",
        "must be an input of the graph",
        "unbuildable",
        "must be a network input",
    ),
    "a cache that wraps around": Trap(
        """graph (float16[1, 2, 16, 64] past, float16[1, 2, 1, 64] update, int64[1] at) => (float16[1, 2, 16, 64] y) {
            y = TensorScatter<mode = "circular">(past, update, at)
        }""",
        "is not linear",
        "refused",
        "Only linear mode",
    ),
    "a cache with update lengths": Trap(
        _cache_graph("16", _PRESENT.format(16), _UPDATE.format("past").replace("at)", "at, at)")),
        "has update_lengths",
        "refused",
        "update lengths",
    ),
    # Ops
    "an op whose output size depends on values": Trap(
        "graph (float[4] x) => (int64[1, K] y) { y = NonZero(x) }",
        "cannot import NonZero",
        "refused",
        "NonZero",
    ),
    "a sequence": Trap(
        """graph (float[4, 2] x, int64 i) => (float[2, 2] y) {
            parts = SplitToSequence<axis = 0>(x)
            y = SequenceAt(parts, i)
        }""",
        "cannot import SplitToSequence",
        "refused",
        "false",
        num_findings=2,
    ),
    "rotary tables of another dtype": Trap(
        """graph (float16[1, 2, 8, 64] x, float[8, 32] cos, float[8, 32] sin, int64[1, 8] at)
            => (float16[1, 2, 8, 64] y) {
            y = RotaryEmbedding(x, cos, sin, at)
        }""",
        "must have the input's dtype",
        "refused",
        "identical types",
    ),
    # Quantization
    "asymmetric weights": Trap(
        "graph (float[4] x) => (float[4] y) { w = DequantizeLinear(q, scale, zero) y = Add(x, w) }",
        "zero point zero is not 0",
        "refused",
        "Non-zero zero point",
        initializers=(
            onnx.numpy_helper.from_array(np.arange(4, dtype=np.int8), "q"),
            onnx.numpy_helper.from_array(np.array(0.5, np.float32), "scale"),
            onnx.numpy_helper.from_array(np.array(3, np.int8), "zero"),
        ),
    ),
    "unsigned 4-bit weights": Trap(
        "graph (float[4] x) => (float[4] y) { w = DequantizeLinear(q, scale) y = Add(x, w) }",
        "q is UINT4",
        "refused",
        "Failed to import initializer",
        initializers=(
            helper.make_tensor("q", TensorProto.UINT4, [4], b"\x21\x43", raw=True),
            onnx.numpy_helper.from_array(np.array(0.5, np.float32), "scale"),
        ),
    ),
    "unsigned 8-bit weights": Trap(
        "graph (float[4] x) => (float[4] y) { w = DequantizeLinear(q, scale) y = Add(x, w) }",
        "q is UINT8",
        "refused",
        "unsupported input type of UINT8",
        initializers=(
            onnx.numpy_helper.from_array(np.arange(4, dtype=np.uint8), "q"),
            onnx.numpy_helper.from_array(np.array(0.5, np.float32), "scale"),
        ),
    ),
    "weights of type E8M0": Trap(
        "graph (float[4] x) => (float[4] y) { w = Cast<to = 1>(q) y = Add(x, w) }",
        "q is FLOAT8E8M0",
        "refused",
        "Failed to import initializer",
        initializers=(helper.make_tensor("q", TensorProto.FLOAT8E8M0, [4], b"\x7f" * 4, raw=True),),
    ),
}

SOUND: Mapping[str, Trap] = {
    "a call of a function": Trap(
        f"{CALL}\n{THING}", "", "built", shows=lambda answer: _types(answer) == ["ACTIVATION"]
    ),
    "a plugin's node without the plugin": Trap(
        CALL.replace("QvThing(x)", 'QvThing<plugin_namespace = "qv", plugin_version = "1", aot = 1>(x)')
        + THING.replace("QvThing", "QvThing <plugin_namespace, plugin_version, aot>"),
        "",
        "built",
        shows=lambda answer: _types(answer) == ["ACTIVATION"],
    ),
    "functions nested as deep as may be": Trap(
        _nested(24), "", "built", shows=lambda answer: _types(answer) == ["ACTIVATION"]
    ),
    "a native attention that nobody else would compute like that": Trap(
        _native(f'{_PADDED}, causal_kind = "none"', "q, k, v, , , n", more=", int32[1] n"),
        "",
        "built",
        shows=lambda answer: _types(answer).count("ATTENTION_OUTPUT") == 1 and answer["read"] == list("qkvn"),
    ),
    "a native attention that may be decomposed": Trap(
        _native(f'{_PADDED}, causal_kind = "none", TRT_decomposable = 1', "q, k, v", dtype="float"),
        "",
        "built",
        shows=lambda answer: _types(answer).count("ATTENTION_OUTPUT") == 1,
    ),
    "a cache updated in place": Trap(
        _cache_graph("16", _PRESENT.format(16), _UPDATE.format("past")),
        "",
        "built",
        shows=lambda answer: _types(answer).count("KV_CACHE_UPDATE") == 1,
    ),
    "symmetric 4-bit weights": Trap(
        """graph (float16[2, 32] x) => (float16[2, 8] y) {
            w = DequantizeLinear<axis = 0, block_size = 16>(q, scale)
            y = MatMul(x, w)
        }""",
        "",
        "built",
        shows=lambda answer: ["CONSTANT", "INT4"] in answer["layers"],
        initializers=(
            helper.make_tensor("q", TensorProto.INT4, [32, 8], bytes(128), raw=True),
            onnx.numpy_helper.from_array(np.ones((2, 8), np.float16), "scale"),
        ),
    ),
}
