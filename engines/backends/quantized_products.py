"""Which products of a graph have quantized weights, and which of them an engine computes with the codes.

Whether codes are multiplied or expanded first shows in nothing that an engine answers, only in its time and memory. So
each target is asked, by what it says of its own layers, and `build` tells of every product that gained nothing.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from engines.backends.facts import WarningFacts
from export.graphs.lint_quantized import QUANTIZED_RULES

PRECISIONS: Mapping[int, str] = {
    TensorProto.INT4: "int4",
    TensorProto.INT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
}
_PRODUCTS = {"MatMul", "Gemm", "Gather"}


@dataclass(frozen=True)
class QuantizedProduct:
    """A node that reads a quantized weight."""

    name: str
    """Of the `MatMul` or `Gemm`, or of the `Gather` of a token embedding."""
    dequantizing: str
    """Name of the `DequantizeLinear` before it."""
    precision: str
    """"int4", "int8" or "fp8"."""


def quantized_products(graph: onnx.GraphProto) -> list[QuantizedProduct]:
    """Every node of a canonical graph that multiplies by, or looks up in, codes."""
    types = {tensor.name: tensor.data_type for tensor in graph.initializer if len(tensor.dims) > 1}
    producers = {name: node for node in graph.node for name in node.output}
    products = []
    for node in graph.node:
        if node.op_type not in _PRODUCTS:
            continue
        weight = _dequantizing(producers, node.input[0 if node.op_type == "Gather" else 1])
        precision = PRECISIONS.get(types.get(weight.input[0], 0)) if weight is not None else None
        if weight is not None and precision is not None:
            products.append(QuantizedProduct(node.name, weight.name, precision))
    return products


def _dequantizing(producers: Mapping[str, onnx.NodeProto], name: str) -> onnx.NodeProto | None:
    node = producers.get(name)
    while node is not None and node.op_type == "Transpose":
        node = producers.get(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def told(
    model: onnx.ModelProto, by_codes: Collection[str], target: str, reasons: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[WarningFacts, ...]]:
    """What a build says of a graph's quantized products: a sentence, and a warning for those that gained nothing.

    Args:
        model: the graph as it was exported.
        by_codes: names of the products that the engine computes with their codes.
        target: who built it.
        reasons: why the target expands the weights of a precision, by precision, where it always does.
    """
    products = quantized_products(model.graph)
    if not products:
        return (), ()
    expanded: dict[str, list[str]] = defaultdict(list)
    findings = [finding for rule in QUANTIZED_RULES for finding in rule(model)]
    for product in products:
        if product.name not in by_codes:
            found = next((finding for finding in findings if repr(product.dequantizing) in finding), None)
            reason = reasons.get(product.precision) or found or f"{target} gives no reason"
            expanded[reason].append(product.name)
    count = len(products) - sum(map(len, expanded.values()))
    sentence = f"{count} of {len(products)} products with quantized weights are computed with their codes"
    warnings = tuple(
        WarningFacts(
            f"{target} expands the weights of {len(names)} products, the first {names[0]}, at every call or when it "
            f"loads: {reason}",
            len(names),
        )
        for reason, names in expanded.items()
    )
    return (sentence,), warnings
