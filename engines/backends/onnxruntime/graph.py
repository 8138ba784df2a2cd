"""Fits a canonical graph to what ONNX Runtime runs well.

By choosing function bodies, and on CPU by computing in float32: ONNX Runtime has no bfloat16 products there.
All of it happens in memory at load time; float32 weights stay where they are, in the mapped file.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from engines.backends.onnxruntime.quantized import fit_quantized, scales_of_float8, widened
from export.checkpoint.config import ModelConfig
from export.contract import is_cache_name
from export.weights.slices import columns_of
from export.weights.values import mapped_values
from plugins.cached_attention import onnx_functions as cached_attention
from plugins.collective import onnx_functions as collective
from plugins.onnx.function_body import MICROSOFT_DOMAIN
from plugins.patch_attention import onnx_functions as patch_attention
from plugins.quantized_cache_attention import onnx_functions as quantized_cache_attention
from plugins.registry import OP_DOMAIN
from plugins.rotary import onnx_functions as rotary

_LOW_PRECISION = (TensorProto.BFLOAT16, TensorProto.FLOAT16)


def load_graph(path: Path, config: ModelConfig, communicator: int = 0) -> onnx.ModelProto:
    """Read a canonical graph without its weights and fit it to ONNX Runtime on CPU.

    Args:
        path: the graph's.
        config: with the sizes that the graph has; see `Bundle.rank_config`.
        communicator: of a rank's graph, its number; see `engines.backends.onnxruntime.collective`.
    """
    model = onnx.load(path, load_external_data=False)
    choose_bodies(model, config, communicator)
    fit_quantized(model)
    compute_in_float32(model)
    use_weights_as_stored(model)
    return model


def choose_bodies(model: onnx.ModelProto, config: ModelConfig, communicator: int = 0) -> None:
    """Replace the functions of our ops by ONNX Runtime's bodies; see `load_graph`."""
    decoder = config.decoder
    heads = (decoder.num_attention_heads, decoder.num_key_value_heads)
    bodies = [
        rotary.onnxruntime(),
        patch_attention.onnxruntime(config.vision.num_heads),
        cached_attention.onnxruntime(*heads),
        *collective.onnxruntime(communicator),
    ]
    if decoder.kv_cache is not None:
        bodies.append(quantized_cache_attention.onnxruntime(decoder.kv_cache, *heads, decoder.head_dim))
        _hold_float8_as_bytes(model)
    replace_bodies(model, bodies)


def _hold_float8_as_bytes(model: onnx.ModelProto) -> None:
    """A cache of 8-bit floats, which ONNX Runtime does not scatter: its attention's body reads and writes bytes."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT8E4M3FN and is_cache_name(value.name):
            value.type.tensor_type.elem_type = TensorProto.UINT8


def replace_bodies(model: onnx.ModelProto, bodies: Sequence[onnx.FunctionProto]) -> None:
    """Put other bodies in the place of those functions of our ops that a graph has."""
    by_name = {body.name: body for body in bodies}
    names = [function.name for function in model.functions if function.domain == OP_DOMAIN]
    others = [function for function in model.functions if function.domain != OP_DOMAIN]
    del model.functions[:]
    model.functions.extend([*others, *(by_name[name] for name in names)])
    model.opset_import.append(helper.make_opsetid(MICROSOFT_DOMAIN, 1))


def compute_in_float32(model: onnx.ModelProto) -> None:
    """Turn a bfloat16 or float16 graph into a float32 one.

    Weights stay declared as they are stored: the session hands ONNX Runtime their float32 values (`raised_weights`),
    since its own folding of a `Cast` holds every weight twice.
    """
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _LOW_PRECISION:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in _low_precision_attributes(node):
            _raise_to_float32(attribute)
    for weight in graph.initializer:
        if weight.data_type in _LOW_PRECISION and not weight.external_data:
            _raise_tensor(weight)
    low = {weight.name for weight in graph.initializer if weight.data_type in _LOW_PRECISION}
    _drop_casts_of(graph, low - _cast_scales(graph, low))


def _cast_scales(graph: onnx.GraphProto, low: set[str]) -> set[str]:
    """Let a `Cast` stand before every scale of codes or of zero points, and give the scales' names.

    ONNX Runtime folds it before it looks for codes to compute with. Handed over as values, scales would be looked for
    in the file.
    """
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    scales = set()
    for node, place in list(_scale_inputs(graph)):
        scale = node.input[place]
        if scale in low:
            node.input[place] = f"{scale}/float32"
            if scale not in scales:
                cast = helper.make_node("Cast", [scale], [f"{scale}/float32"], to=TensorProto.FLOAT)
                graph.node.insert(0, cast)
        scales |= {scale, casts.get(scale, scale)} & low
    return scales


def _scale_inputs(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, int]]:
    """Nodes that read a scale, and as which input: those of codes, and products of constants, which are folded."""
    constants = {weight.name for weight in graph.initializer}
    for node in graph.node:
        if not set(node.input) <= constants:
            continue
        constants |= set(node.output)
        if node.op_type == "DequantizeLinear":
            yield node, 1
        elif node.op_type == "Mul":
            yield node, 0
            yield node, 1


def _drop_casts_of(graph: onnx.GraphProto, weights: set[str]) -> None:
    """Whoever reads `Cast(weight)` reads the weight, which will be float32 already."""
    casts = {
        node.output[0]: node for node in graph.node if node.op_type == "Cast" and node.input[0] in weights
    }
    for node in graph.node:
        node.input[:] = [casts[name].input[0] if name in casts else name for name in node.input]
    for cast in casts.values():
        graph.node.remove(cast)


def raised_weights(model: onnx.ModelProto, directory: Path) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Read each bfloat16, float16 or 8-bit float weight of a graph as float32, and declare it so in the graph.

    Float32 ones, too, that are columns of a stored matrix: they lie together nowhere else. Not those that the graph
    itself casts: they are scales, few and small.
    """
    cast = {node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    for codes, scales in scales_of_float8(model):
        values = widened(mapped_values(codes, directory, np.uint8), _float32_values(scales, directory))
        codes.data_type = TensorProto.FLOAT
        yield codes.name, values
    for weight in model.graph.initializer:
        if weight.data_type in _LOW_PRECISION and weight.name not in cast:
            values = _float32_values(weight, directory)
            weight.data_type = TensorProto.FLOAT
            yield weight.name, values
        elif weight.data_type == TensorProto.FLOAT and columns_of(weight) is not None:
            yield weight.name, np.ascontiguousarray(mapped_values(weight, directory, np.float32))


def _float32_values(weight: onnx.TensorProto, directory: Path) -> npt.NDArray[np.float32]:
    if weight.data_type == TensorProto.FLOAT:
        return mapped_values(weight, directory, np.float32)
    return _float32_from_bits(mapped_values(weight, directory, np.uint16), weight.data_type)


def _float32_from_bits(bits: npt.NDArray[np.uint16], data_type: int) -> npt.NDArray[np.float32]:
    if data_type == TensorProto.FLOAT16:
        return bits.view(np.float16).astype(np.float32)
    # A bfloat16 is the upper half of the float32 of the same value: a shift, where ml_dtypes converts one by one.
    widened = bits.astype(np.uint32)
    widened <<= 16
    return widened.view(np.float32)


def _low_precision_attributes(node: onnx.NodeProto) -> Iterator[onnx.AttributeProto]:
    for attribute in node.attribute:
        is_cast_target = node.op_type == "Cast" and attribute.name == "to" and attribute.i in _LOW_PRECISION
        if is_cast_target or attribute.t.data_type in _LOW_PRECISION:
            yield attribute


def _raise_to_float32(attribute: onnx.AttributeProto) -> None:
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = TensorProto.FLOAT
    else:
        _raise_tensor(attribute.t)


def _raise_tensor(tensor: onnx.TensorProto) -> None:
    array = onnx.numpy_helper.to_array(tensor).astype("float32")
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def use_weights_as_stored(model: onnx.ModelProto) -> None:
    """Fuse `MatMul(x, Transpose(W))` into one product that reads W as the checkpoint stores it, [out, in].

    ONNX Runtime would fold the transposition into a second copy of every weight; fused, float32 weights are used
    in place, straight from the mapped file.
    """
    graph = model.graph
    weights = {initializer.name for initializer in graph.initializer}
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
