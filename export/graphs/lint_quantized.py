"""Lint of quantized products: neither ONNX Runtime nor TensorRT expands a weight's codes before it multiplies.

Both take any of these graphs, and compute the right numbers: an expanded weight shows in nothing but time and memory.
What each of them does was seen in the optimized graph of ONNX Runtime 1.32 on a CPU, and in the engine inspector's
answer of TensorRT-RTX 1.7.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
from onnx import TensorProto

from export.graphs.lint_calls import Findings, label, with_subgraphs

_BLOCKS = range(16, 513)
_EIGHT_BITS = {TensorProto.INT8: "int8", TensorProto.FLOAT8E4M3FN: "fp8", TensorProto.FLOAT8E5M2: "fp8"}
_READERS = {"MatMul", "Gemm", "Transpose", "Gather"}
_MOVES = {"Transpose", "Gather"}


class Quantized:
    """The `DequantizeLinear` nodes of a graph whose codes are weights, and who reads what."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(with_subgraphs(model.graph.node))
        values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        self.shapes = {value.name: _shape(value) for value in values}
        self.shapes |= {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        self.made = {name for node in self.nodes for name in node.output}
        """Values that are neither initializers nor inputs, as which a check without weights has them."""
        self.readers: Mapping[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)

    def weights(self, *types: int) -> Iterator[onnx.NodeProto]:
        """Those with codes of one of these types."""
        for node in self.nodes:
            is_weight = node.op_type == "DequantizeLinear" and node.input[0] not in self.made
            if is_weight and self.types.get(node.input[0]) in types:
                yield node


def four_bit_weights_have_blocks(model: onnx.ModelProto) -> Findings:
    """TensorRT multiplies by 4-bit codes where 16 to 512 inputs share a scale, and expands those of whole outputs."""
    graph = Quantized(model)
    for node in graph.weights(TensorProto.INT4):
        block = _attribute(node, "block_size", 0)
        inputs = graph.shapes[node.input[0]][_attribute(node, "axis", 1)] if block else 0
        if block not in _BLOCKS or block == inputs:
            found = "a scale for each output" if block == inputs else f"blocks of {block}"
            yield f"{label(node)}: 4-bit codes with {found}: TensorRT would expand them. Use blocks of 16 to 512"


def four_bit_weights_are_input_major(model: onnx.ModelProto) -> Findings:
    """ONNX Runtime multiplies by 4-bit codes [K, N] alone, in blocks of axis 0."""
    graph = Quantized(model)
    for node in graph.weights(TensorProto.INT4):
        rank = len(graph.shapes[node.input[0]])
        if rank != 2:
            yield f"{label(node)}: 4-bit codes of {rank} axes: TensorRT would expand them. Store them as [K, N]"
        elif _attribute(node, "axis", 1) != 0 and any(
            reader.op_type in {"Transpose", "Gemm", "MatMul"} for reader in graph.readers[node.output[0]]
        ):
            yield (
                f"{label(node)}: 4-bit codes [N, K] in blocks of axis 1: ONNX Runtime would expand them. "
                "Store them as [K, N], in blocks of axis 0"
            )


def eight_bit_weights_have_no_blocks(model: onnx.ModelProto) -> Findings:
    """TensorRT expands 8-bit codes in blocks, of integers and of floats."""
    for node in Quantized(model).weights(*_EIGHT_BITS):
        if _attribute(node, "block_size", 0):
            yield f"{label(node)}: 8-bit codes in blocks: TensorRT would expand them. Give each output one scale"


def no_four_bit_floats(model: onnx.ModelProto) -> Findings:
    """Weights in 4-bit floats are expanded unless the inputs are such floats too, which TensorRT alone takes."""
    for node in Quantized(model).weights(TensorProto.FLOAT4E2M1):
        yield f"{label(node)}: 4-bit floats: TensorRT would expand them, ONNX Runtime has none. Use int4"


def weights_are_dequantized_to_what_they_multiply(model: onnx.ModelProto) -> Findings:
    """A cast, or arithmetic, between codes and product makes TensorRT expand them."""
    graph = Quantized(model)
    for node in graph.weights(*_EIGHT_BITS, TensorProto.INT4):
        if any(attribute.name == "output_dtype" for attribute in node.attribute):
            yield f"{label(node)} has output_dtype: TensorRT builds no engine. Cast the scales instead"
        if len(graph.shapes[node.input[0]]) < 2 or _is_table(graph, node):
            continue
        for reader in _first_readers(graph, node.output[0]):
            if reader.op_type == "Cast":
                yield f"{label(node)} is cast: TensorRT would expand the weight. Cast its scales instead"
            elif reader.op_type not in _READERS:
                yield (
                    f"{label(node)} is read by {label(reader)}: TensorRT would expand the weight. "
                    "Correct the product instead, by sums of its input"
                )


def _is_table(graph: Quantized, node: onnx.NodeProto) -> bool:
    """Whether it is a table of zero points, a 1/block of a weight, which is multiplied by its scales."""
    shape = graph.shapes[node.input[0]]
    return all(
        reader.op_type == "Mul" and all(graph.shapes.get(name) == shape for name in reader.input)
        for reader in graph.readers[node.output[0]]
    )


def _first_readers(graph: Quantized, name: str) -> Iterator[onnx.NodeProto]:
    """Who reads a value, looking through what moves its elements alone."""
    for reader in graph.readers[name]:
        if reader.op_type == "Transpose":
            yield from _first_readers(graph, reader.output[0])
        else:
            yield reader


def inputs_are_rounded_by_constants(model: onnx.ModelProto) -> Findings:
    """TensorRT takes scales that are constants: others are refused, or make it multiply without integers."""
    graph = Quantized(model)
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear" and node.input[1] in graph.made:
            yield (
                f"{label(node)} has a computed scale: TensorRT would not multiply by integers. "
                "Divide by it before, round by 1, and multiply the product"
            )


def inputs_are_rounded_for_one_product(model: onnx.ModelProto) -> Findings:
    """ONNX Runtime merges equal roundings of one value, and computes none of their products with integers."""
    graph = Quantized(model)
    roundings = Counter(
        tuple(node.input) for node in graph.nodes if node.op_type == "QuantizeLinear" and len(node.input) == 3
    )
    for (value, scale, zero), count in roundings.items():
        if count > 1:
            yield (
                f"{count} roundings of {value} share {scale} and {zero}: ONNX Runtime would merge them and multiply by "
                "expanded weights. Give each product constants of its own"
            )
    for node in graph.nodes:
        if node.op_type == "DequantizeLinear" and node.input[0] in graph.made:
            count = sum(reader.op_type in {"MatMul", "Gemm"} for reader in graph.readers[node.output[0]])
            if count > 1:
                yield (
                    f"{count} products read {label(node)}: ONNX Runtime would multiply by expanded weights. "
                    "Give each a rounding of its own"
                )


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


QUANTIZED_RULES = (
    four_bit_weights_have_blocks,
    four_bit_weights_are_input_major,
    eight_bit_weights_have_no_blocks,
    no_four_bit_floats,
    weights_are_dequantized_to_what_they_multiply,
    inputs_are_rounded_by_constants,
    inputs_are_rounded_for_one_product,
)
