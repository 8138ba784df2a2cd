"""Fits the quantized products of a canonical graph to ONNX Runtime's kernels on a CPU.

Most need nothing: it multiplies by 4- and 8-bit codes where it finds them as the graph has them. It has no product of
8-bit floats, folds no zero points, and looks rows up in codes by an op of its own.
"""

from collections.abc import Collection, Iterator

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from plugins.onnx.function_body import MICROSOFT_DOMAIN

CODES = (TensorProto.INT4, TensorProto.INT8)
FLOAT8 = TensorProto.FLOAT8E4M3FN


def has_codes(model: onnx.ModelProto) -> bool:
    """Whether any product reads integer codes."""
    return any(weight.data_type in CODES for weight in model.graph.initializer if weight.external_data)


def keep_from_packing(model: onnx.ModelProto, shared: Collection[str]) -> None:
    """Let products read weights that are shared with us where they lie, while others are packed.

    Declared as an input with a default, a weight is no constant to ONNX Runtime, and none that it packs: the head of a
    model whose layers alone are quantized would stand in memory twice.
    """
    products = {name for node in model.graph.node if node.op_type == "FusedMatMul" for name in node.input}
    for weight in model.graph.initializer:
        if weight.name in shared and weight.name in products:
            model.graph.input.append(
                helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
            )


def fit_quantized(model: onnx.ModelProto) -> None:
    """Change a canonical graph, before its dtypes are: same numbers, ops for which there is a kernel."""
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    dequantized = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in weights
    }
    for node in list(graph.node):
        if node.op_type == "Gather" and node.input[0] in dequantized:
            _look_up_rows(graph, node, dequantized[node.input[0]], weights)
    for node in dequantized.values():
        codes = weights[node.input[0]]
        if codes.data_type == FLOAT8:
            _read_widened(graph, node)
        elif _is_by_one(node, weights):
            node.op_type = "Cast"  # which is folded, where dequantizing is not
            del node.input[1:]
            node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    used = {name for node in graph.node for name in node.input}
    for node in list(graph.node):
        if node.op_type == "DequantizeLinear" and node.output[0] not in used:
            graph.node.remove(node)


def _is_by_one(node: onnx.NodeProto, weights: dict[str, TensorProto]) -> bool:
    """Whether it only widens: of a table of zero points."""
    scale = weights.get(node.input[1])
    return scale is not None and not scale.dims and float(onnx.numpy_helper.to_array(scale)) == 1.0


def _read_widened(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Let whoever reads the dequantized weight read the codes, of which the session is handed the float32 values."""
    for reader in graph.node:
        reader.input[:] = [node.input[0] if name == node.output[0] else name for name in reader.input]
    graph.node.remove(node)


def widened(codes: npt.NDArray[np.uint8], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The float32 values of 8-bit floats [N, K] under a scale for each output, or one for all."""
    values: npt.NDArray[np.float32] = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    values *= scales.reshape(-1, 1)
    return values


def _look_up_rows(
    graph: onnx.GraphProto, node: onnx.NodeProto, source: onnx.NodeProto, weights: dict[str, TensorProto]
) -> None:
    """Look up in the codes, and dequantize what was found.

    The codes and scales are initializers of their own over the same bytes: with another reader beside it, a product
    would be given the expanded weight.
    """
    codes, scales = (_again(graph, weights[name]) for name in source.input[:2])
    block = next((attribute.i for attribute in source.attribute if attribute.name == "block_size"), 0)
    index = list(graph.node).index(node)
    if codes.data_type == TensorProto.INT4:
        look_up = helper.make_node(
            "GatherBlockQuantized",
            [codes.name, node.input[1], scales.name],
            [node.output[0]],
            node.name,
            domain=MICROSOFT_DOMAIN,
            gather_axis=1,
            quantize_axis=0,
            block_size=block,
            bits=4,
        )
        nodes = [look_up]
    else:
        found, scale = f"{node.output[0]}/codes", f"{node.output[0]}/scales"
        nodes = [
            helper.make_node("Gather", [codes.name, node.input[1]], [found], f"{node.name}/codes", axis=1),
            helper.make_node("Gather", [scales.name, node.input[1]], [scale], f"{node.name}/scales", axis=0),
            helper.make_node("Cast", [found], [f"{found}/values"], to=scales.data_type),
            helper.make_node("Mul", [f"{found}/values", scale], [node.output[0]], node.name),
        ]
    graph.node.remove(node)
    for offset, new in enumerate(nodes):
        graph.node.insert(index + offset, new)


def _again(graph: onnx.GraphProto, weight: TensorProto) -> TensorProto:
    copy: TensorProto = graph.initializer.add()
    copy.CopyFrom(weight)
    copy.name = f"{weight.name}/rows"
    return copy


def scales_of_float8(model: onnx.ModelProto) -> Iterator[tuple[TensorProto, TensorProto]]:
    """Each weight of 8-bit floats with its scales, which lie beside it under the same name."""
    weights = {weight.name: weight for weight in model.graph.initializer}
    for name, weight in weights.items():
        if weight.data_type == FLOAT8 and weight.external_data:
            yield weight, weights[f"{name.removesuffix('.codes')}.scales"]
