"""Lint of ops: TensorRT computes each as ONNX means it, and has a kernel for it.

Rules on ops, their attributes and types, after our functions were inlined: that is what the parser does with them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto

from export.dtypes import GRAPH_DTYPES, onnx_dtype
from export.graphs.lint_calls import NATIVE_OPS, Findings, label, with_subgraphs
from plugins.onnx.native_layers import KV_CACHE_UPDATE, NATIVE_ATTENTION
from plugins.registry import COLLECTIVES

_FUSED_HEAD_DIMS = range(16, 257)  # of TensorRT-RTX 1.7 for float16 and bfloat16
_LOW_PRECISION = {onnx_dtype(name): name for name in GRAPH_DTYPES if name != "float32"}
_CAPACITY = "L"  # the contract's letter: dynamic in a canonical graph, made constant for an engine

ValueTypes = Mapping[str, onnx.TypeProto.Tensor]


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the bodies of its functions in place of their calls, and types of all values.

    Native ops and collectives stay: TensorRT never reads their functions.
    """
    names = NATIVE_OPS.union(op.name for op in COLLECTIVES)
    kept = [(function.domain, function.name) for function in model.functions if function.name in names]
    flat = onnx.inliner.inline_selected_functions(model, kept, exclude=True)
    return onnx.shape_inference.infer_shapes(flat)


def attention_is_plain(model: onnx.ModelProto) -> Findings:
    """Of the standard `Attention`, the parser takes q, k, v and either a mask or causality."""
    for node in _nodes(model, "Attention"):
        inputs, attributes = _inputs(node, 7), _attributes(node)
        if inputs[4] or inputs[5]:
            yield f"{label(node)} has past_key or past_value: the parser refuses them"
        if inputs[6]:
            yield f"{label(node)} has nonpad_kv_seqlen: the parser silently ignores it"
        if attributes.get("is_causal") and inputs[3]:
            yield f"{label(node)} is causal and has a mask: the parser refuses both together"
        if len(node.output) > 1:
            yield f"{label(node)} has more than one output: the parser refuses them"
        for name in ("softcap", "softmax_precision"):
            if attributes.get(name):
                yield f"{label(node)} has {name}: the parser refuses it"


def attention_is_scaled_in_float32(model: onnx.ModelProto) -> Findings:
    """The standard `Attention` multiplies q and k by the root of its scale, each rounded to the tensor's dtype."""
    types = _types(model)
    for node in _nodes(model, "Attention"):
        dtype = _LOW_PRECISION.get(_elem_type(types, node.input[0]))
        if dtype and _attributes(node).get("scale") != 1.0:
            yield f"{label(node)} would be scaled in {dtype}: scale q in float32 before, and pass scale 1"


def native_attention_has_a_kernel(model: onnx.ModelProto) -> Findings:
    """`TRT_Attention` without a fused kernel fails in the build, long after parsing."""
    types = _types(model)
    for node in _nodes(model, NATIVE_ATTENTION.name):
        inputs, attributes = _inputs(node, 6), _attributes(node)
        if inputs[3] and attributes.get("causal_kind") not in {None, "none"}:
            yield f"{label(node)} is causal and has a mask: the parser refuses both together"
        if "packed_nhd" in {attributes.get("query_form"), attributes.get("kv_form")}:
            yield f"{label(node)} is packed: TensorRT-RTX has no kernel for that, and nothing to decompose it into"
        if attributes.get("TRT_decomposable"):
            continue
        if _elem_type(types, node.input[0]) == TensorProto.FLOAT:
            yield f"{label(node)} is float32 and may not be decomposed: there is no fused kernel"
        head_dim = _last_dim(types, node.input[0])
        if head_dim and head_dim not in _FUSED_HEAD_DIMS:
            yield f"{label(node)} has heads of {head_dim} and may not be decomposed: there is no fused kernel"


def caches_are_updated_in_place(model: onnx.ModelProto) -> Findings:
    """A cache is an input of the graph, of constant capacity, and its update an output."""
    types = _types(model)
    inputs = {value.name for value in model.graph.input}
    outputs = {value.name for value in model.graph.output}
    for node in _nodes(model, KV_CACHE_UPDATE.name, "TensorScatter"):
        if node.input[0] not in inputs:
            yield f"{label(node)}: the cache {node.input[0]} must be an input of the graph"
        if node.output[0] not in outputs:
            yield f"{label(node)}: the updated cache {node.output[0]} must be an output of the graph"
        dims = types[node.input[0]].shape.dim if node.input[0] in types else []
        if len(dims) == 4 and not dims[2].dim_value and dims[2].dim_param != _CAPACITY:
            yield f"{label(node)}: the cache's capacity must be constant, found {dims[2].dim_param or 'any'}"
        if _attributes(node).get("mode", "linear") != "linear":
            yield f"{label(node)} is not linear: the parser refuses it"
        if len(node.input) > 3 and node.input[3]:
            yield f"{label(node)} has update_lengths: the parser refuses them with padded updates"


def no_refused_ops(model: onnx.ModelProto) -> Findings:
    """Ops whose output size depends on values fail, and sequences have no importer."""
    refused = {"NonZero", "SplitToSequence", "SequenceAt", "SequenceInsert", "ConcatFromSequence"}
    for node in _nodes(model, *refused):
        yield f"{label(node)}: TensorRT cannot import {node.op_type}"


def rotary_tables_have_the_inputs_type(model: onnx.ModelProto) -> Findings:
    """The native `RotaryEmbedding` takes sines and cosines in the dtype of its input."""
    types = _types(model)
    for node in _nodes(model, "RotaryEmbedding"):
        if len({_elem_type(types, name) for name in node.input[:3]}) > 1:
            yield f"{label(node)}: the sines and cosines must have the input's dtype"


def weights_have_importable_types(model: onnx.ModelProto) -> Findings:
    """TensorRT imports no unsigned 4-bit and no E8M0 initializer."""
    refused = {TensorProto.UINT4: "UINT4", TensorProto.FLOAT8E8M0: "FLOAT8E8M0"}
    for tensor in model.graph.initializer:
        if tensor.data_type in refused:
            yield f"initializer {tensor.name} is {refused[tensor.data_type]}: TensorRT cannot import it"


def quantization_is_symmetric(model: onnx.ModelProto) -> Findings:
    """A zero point that is not 0 is refused, and so is unsigned quantization."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in _nodes(model, "DequantizeLinear", "QuantizeLinear"):
        weight, zero_point = tensors.get(node.input[0]), tensors.get(_inputs(node, 3)[2])
        if weight is not None and weight.data_type == TensorProto.UINT8:
            yield f"{label(node)}: {weight.name} is UINT8, the parser takes signed types"
        if zero_point is not None and np.any(onnx.numpy_helper.to_array(zero_point) != 0):
            yield f"{label(node)}: the zero point {zero_point.name} is not 0"


def _nodes(model: onnx.ModelProto, *op_types: str) -> Iterator[onnx.NodeProto]:
    # Functions that are still there are native ops' or uncalled: the parser reads neither.
    return (node for node in with_subgraphs(model.graph.node) if node.op_type in op_types)


def _inputs(node: onnx.NodeProto, count: int) -> list[str]:
    """All inputs, empty where omitted."""
    return [*node.input, *[""] * (count - len(node.input))]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def _types(model: onnx.ModelProto) -> ValueTypes:
    graph = model.graph
    values = {
        value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)
    }
    for tensor in graph.initializer:
        values[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims).tensor_type
    return values


def _elem_type(types: ValueTypes, name: str) -> int:
    return types[name].elem_type if name in types else TensorProto.UNDEFINED


def _last_dim(types: ValueTypes, name: str) -> int:
    """Size of the last axis; 0 where it is unknown."""
    dims = types[name].shape.dim if name in types else []
    return dims[-1].dim_value if dims else 0
