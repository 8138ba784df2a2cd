"""What both graphs share when they are put together: contract inputs and outputs, op functions, opset."""

from collections.abc import Iterable, Sequence

import onnx
import onnx_ir as ir
from torch import Tensor

from export.contract import GraphContract, TensorSpec
from export.graphs.weights import Weights
from export.models.pieces import PieceInput, torch_dtype
from export.weights.stored import ir_dtype
from plugins.registry import OP_DOMAIN, OPSET_VERSION

IR_VERSION = 11
"""The newest that onnx.checker and ONNX Runtime 1.2x both take and that knows opset 24's types."""


def graph_with_inputs(name: str, contract: GraphContract) -> tuple[ir.Graph, dict[str, ir.Value]]:
    """An empty graph with the contract's inputs, and these inputs by name."""
    inputs = {spec.name: _value(spec) for spec in contract.inputs}
    graph = ir.Graph(
        inputs=list(inputs.values()),
        outputs=[],
        nodes=[],
        opset_imports={"": OPSET_VERSION, OP_DOMAIN: 1},
        name=name,
    )
    return graph, inputs


def _value(spec: TensorSpec) -> ir.Value:
    return ir.Value(
        name=spec.name,
        type=ir.TensorType(ir_dtype(spec.dtype)),
        shape=ir.Shape(spec.shape),
        doc_string=spec.doc,
    )


def piece_inputs(contract: GraphContract, names: Iterable[str]) -> list[PieceInput]:
    """Graph inputs as inputs of a traced piece."""
    specs = [contract.input(name) for name in names]
    return [PieceInput(spec.name, torch_dtype(spec.dtype), spec.shape) for spec in specs]


_TABLE_NAMES = ("frequencies", "axis_of")


def table_inputs(tables: Sequence[Tensor]) -> list[PieceInput]:
    """Rotary tables (`frequencies`, `axis_of`) as inputs of a traced block: every layer shares one pair."""
    return [
        PieceInput(name, table.dtype, tuple(table.shape))
        for name, table in zip(_TABLE_NAMES, tables, strict=True)
    ]


def table_values(weights: Weights, prefix: str, tables: Sequence[Tensor]) -> dict[str, ir.Value]:
    """Rotary tables as constants of the graph, by the names of `table_inputs`."""
    return {
        name: weights.constant(f"{prefix}.{name}", table.numpy())
        for name, table in zip(_TABLE_NAMES, tables, strict=True)
    }


def set_outputs(graph: ir.Graph, contract: GraphContract, values: Sequence[ir.Value]) -> None:
    """Make `values` the graph's outputs under the contract's names."""
    for value, spec in zip(values, contract.outputs, strict=True):
        assert value.dtype == ir_dtype(spec.dtype), (spec.name, value.dtype)
        value.name, value.doc_string, value.shape = spec.name, spec.doc, ir.Shape(spec.shape)
        graph.outputs.append(value)


def model_of(graph: ir.Graph, functions: Iterable[onnx.FunctionProto], doc: str) -> ir.Model:
    """The graph with its op functions: canonical ONNX that any consumer can run."""
    return ir.Model(
        graph,
        ir_version=IR_VERSION,
        producer_name="qv-export",
        doc_string=doc,
        functions=[ir.serde.deserialize_function(function) for function in functions],
    )
