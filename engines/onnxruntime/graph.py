"""How does a canonical graph become the one that ONNX Runtime runs well?

By choosing function bodies, and on CPU by computing in float32: ONNX Runtime has no bfloat16 products there.
All of it happens in memory at load time; weights stay where they are.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from export.config import ModelConfig
from plugins.cached_attention import onnx_functions as cached_attention
from plugins.function_body import MICROSOFT_DOMAIN
from plugins.patch_attention import onnx_functions as patch_attention
from plugins.registry import OP_DOMAIN
from plugins.rotary import onnx_functions as rotary

_LOW_PRECISION = (TensorProto.BFLOAT16, TensorProto.FLOAT16)


def load_graph(path: Path, config: ModelConfig) -> onnx.ModelProto:
    """Read a canonical graph without its weights and fit it to ONNX Runtime on CPU."""
    model = onnx.load(path, load_external_data=False)
    choose_bodies(model, config)
    compute_in_float32(model)
    use_weights_as_stored(model)
    return model


def choose_bodies(model: onnx.ModelProto, config: ModelConfig) -> None:
    """Replace the functions of our ops by ONNX Runtime's bodies."""
    bodies = {
        body.name: body
        for body in (
            rotary.onnxruntime(),
            patch_attention.onnxruntime(config.vision.num_heads),
            cached_attention.onnxruntime(
                config.decoder.num_attention_heads, config.decoder.num_key_value_heads
            ),
        )
    }
    names = [function.name for function in model.functions if function.domain == OP_DOMAIN]
    others = [function for function in model.functions if function.domain != OP_DOMAIN]
    del model.functions[:]
    model.functions.extend([*others, *(bodies[name] for name in names)])
    model.opset_import.append(helper.make_opsetid(MICROSOFT_DOMAIN, 1))


def compute_in_float32(model: onnx.ModelProto) -> None:
    """Turn a bfloat16 or float16 graph into a float32 one; stored weights keep their bytes and get a `Cast`.

    ONNX Runtime folds these casts once, when the session is made.
    """
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _LOW_PRECISION:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    casts, renamed = [], {}
    for initializer in graph.initializer:
        if initializer.data_type in _LOW_PRECISION:
            renamed[initializer.name] = f"{initializer.name}/float32"
            casts.append(
                helper.make_node(
                    "Cast", [initializer.name], [renamed[initializer.name]], to=TensorProto.FLOAT
                )
            )
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        for attribute in _low_precision_attributes(node):
            _raise_to_float32(attribute)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _low_precision_attributes(node: onnx.NodeProto) -> Iterator[onnx.AttributeProto]:
    for attribute in node.attribute:
        is_cast_target = node.op_type == "Cast" and attribute.name == "to" and attribute.i in _LOW_PRECISION
        if is_cast_target or attribute.t.data_type in _LOW_PRECISION:
            yield attribute


def _raise_to_float32(attribute: onnx.AttributeProto) -> None:
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = TensorProto.FLOAT
    else:
        array = onnx.numpy_helper.to_array(attribute.t).astype("float32")
        attribute.t.CopyFrom(onnx.numpy_helper.from_array(array, attribute.t.name))


def use_weights_as_stored(model: onnx.ModelProto) -> None:
    """Fuse `MatMul(x, Transpose(W))` into one product that reads W as the checkpoint stores it, [out, in].

    ONNX Runtime would fold the transposition into a second copy of every weight; fused, float32 weights are used
    in place, straight from the mapped file.
    """
    graph = model.graph
    weights = {initializer.name for initializer in graph.initializer}
    weights |= {node.output[0] for node in graph.node if node.op_type == "Cast" and node.input[0] in weights}
    transposed = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] in weights
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in transposed:
            node.op_type, node.domain = "FusedMatMul", MICROSOFT_DOMAIN
            node.input[1] = transposed[node.input[1]].input[0]
            node.attribute.append(helper.make_attribute("transB", 1))
    for node in transposed.values():
        graph.node.remove(node)
