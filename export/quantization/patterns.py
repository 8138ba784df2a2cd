"""How a product with a quantized weight stands in a canonical graph.

One form for every consumer: standard Quantize- and DequantizeLinear, codes [K, N] (inputs, outputs), so that ONNX
Runtime and TensorRT both compute with the codes instead of expanding them first. What either of them would expand is
a finding of the graph's lint (`export.graphs.lint_quantized`).

Letters: K inputs of a linear, N its outputs, G groups of K that share a scale.
"""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from export.weights.source import LinearValues
from export.weights.stored import constant

_LARGEST_CODE = {"int8": 127.0, "fp8": 448.0}
_CODE_DTYPES: dict[str, npt.DTypeLike] = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}

# A token's largest value is taken as at least this: its 1/127 must be a number that float16 holds well.
_SMALLEST_MAXIMUM = {ir.DataType.FLOAT16: 1e-3}
_SMALLEST_MAXIMUM_OTHERWISE = 1e-6

_LAST_AXIS = "quantization.last_axis"


def product(
    graph: ir.Graph, scope: str, x: ir.Value, linear: LinearValues, output: ir.Value, bias: ir.Value | None
) -> None:
    """Append y = x w + bias for a quantized w.

    Args:
        graph: receives the nodes.
        scope: of their names, e.g. `/layers.0/self_attn/q_proj`.
        x: [..., K], in the dtype of the scales.
        linear: w.
        output: y [..., N]; it is given its producer here.
        bias: [N]; None: there is none.
    """
    nodes = _Nodes(graph, scope)
    if linear.order is not None:
        x = _gathered(nodes, x, linear.order)
    y, scale = (x, None) if linear.linear.activations is None else _rounded(nodes, x, linear)
    steps: list[tuple[str, ir.Value]] = [("MatMul", _weight(nodes, linear))]
    if scale is not None:
        steps.append(("Mul", scale))
    if linear.offsets is not None:
        steps.append(("Sub", nodes.add("MatMul", [_group_sums(nodes, x, linear), linear.offsets])))
    if bias is not None:
        steps.append(("Add", bias))
    for index, (op_type, operand) in enumerate(steps, 1):
        y = nodes.add(op_type, [y, operand], output=output if index == len(steps) else None)


def rows(graph: ir.Graph, scope: str, indices: ir.Value, linear: LinearValues, output: ir.Value) -> None:
    """Append a look-up of the outputs' rows of a quantized w, as a token embedding that is also the head.

    Args:
        graph: receives the nodes.
        scope: of their names.
        indices: [B, S] int.
        linear: w [K, N].
        output: [B, S, K]; it is given its producer here.
    """
    assert linear.linear.precision != "fp8", "nobody multiplies by fp8 codes [K, N]"
    nodes = _Nodes(graph, scope)
    columns = nodes.add("Gather", [_dequantize(nodes, linear), indices], {"axis": 1})  # [K, B, S]
    nodes.add("Transpose", [columns], {"perm": [1, 2, 0]}, output=output)


def _gathered(nodes: "_Nodes", x: ir.Value, order: ir.Value) -> ir.Value:
    """The inputs as the columns of the weight multiply them, some of them perhaps twice."""
    gathered = nodes.add("Gather", [x, order], {"axis": -1}, like=x)
    if x.shape is not None and order.shape is not None:
        gathered.shape = ir.Shape([*x.shape.dims[:-1], *order.shape.dims])
    return gathered


def _weight(nodes: "_Nodes", linear: LinearValues) -> ir.Value:
    weight = _dequantize(nodes, linear)
    return nodes.add("Transpose", [weight], {"perm": [1, 0]}) if linear.linear.precision == "fp8" else weight


def _dequantize(nodes: "_Nodes", linear: LinearValues) -> ir.Value:
    if _rank(linear.scales) == 2:
        attributes = {"axis": 0, "block_size": linear.linear.block}
    else:
        attributes = {"axis": 0 if linear.linear.precision == "fp8" else 1}
    value = nodes.add("DequantizeLinear", [linear.codes, linear.scales], attributes, like=linear.scales)
    value.shape = linear.codes.shape
    return value


def _rounded(nodes: "_Nodes", x: ir.Value, linear: LinearValues) -> tuple[ir.Value, ir.Value | None]:
    """The input on its codes, and what the product must be multiplied by where each token has a scale of its own.

    A scale that the graph computes is no scale that TensorRT takes: the token is divided by it, rounded by 1, and the
    product multiplied. Scale and zero point are constants of this product's own: ONNX Runtime would merge the rounding
    of several products that read one input, and compute none of them with integers.
    """
    dtype = x.dtype
    assert dtype is not None, x
    assert linear.linear.precision != "int4", "activations are rounded for 8-bit products"
    zero = nodes.constant(
        f"{linear.linear.name}.input_zero", np.zeros((), _CODE_DTYPES[linear.linear.precision])
    )
    if linear.activation_scale is not None:
        return _quantize_dequantize(nodes, x, linear.activation_scale, zero), None
    one = nodes.constant(f"{linear.linear.name}.input_scale", np.ones((), dtype.numpy()))
    smallest = _SMALLEST_MAXIMUM.get(dtype, _SMALLEST_MAXIMUM_OTHERWISE)
    largest = nodes.add("Abs", [x], like=x)
    largest = nodes.add("ReduceMax", [largest, nodes.last_axis()], {"keepdims": 1})
    largest = nodes.add("Max", [largest, nodes.shared("smallest_maximum", smallest, dtype)])
    inverse = nodes.shared(
        f"inverse_{linear.linear.precision}", 1 / _LARGEST_CODE[linear.linear.precision], dtype
    )
    token_scale = nodes.add("Mul", [largest, inverse])
    normal = nodes.add("Div", [x, token_scale], like=x)
    return _quantize_dequantize(nodes, normal, one, zero), token_scale


def _quantize_dequantize(nodes: "_Nodes", x: ir.Value, scale: ir.Value, zero: ir.Value) -> ir.Value:
    codes = nodes.add("QuantizeLinear", [x, scale, zero])
    return nodes.add("DequantizeLinear", [codes, scale, zero], like=x)


def _group_sums(nodes: "_Nodes", x: ir.Value, linear: LinearValues) -> ir.Value:
    """[..., G]: sums of x over the inputs that share a zero point.

    y = x (q - z) s = x (q s) - sums(x) (z s): exact, and the codes stay what TensorRT takes, symmetric.
    """
    stored = linear.linear
    target = np.array([*[0] * (_rank(x) - 1), stored.num_blocks, stored.block], np.int64)
    shape = nodes.constant(f"{linear.linear.name}.groups", target)
    grouped = nodes.add("Reshape", [x, shape])
    return nodes.add("ReduceSum", [grouped, nodes.last_axis()], {"keepdims": 0})


def _rank(value: ir.Value) -> int:
    assert value.shape is not None, value
    return len(value.shape)


class _Nodes:
    """Appends nodes named after a scope, and the constants that they read."""

    def __init__(self, graph: ir.Graph, scope: str) -> None:
        self._graph = graph
        self._scope = scope
        self._counts: dict[str, int] = {}

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any] | None = None,
        *,
        output: ir.Value | None = None,
        like: ir.Value | None = None,
    ) -> ir.Value:
        """Args: like: a value whose dtype and shape the output has."""
        count = self._counts[op_type] = self._counts.get(op_type, -1) + 1
        name = f"{self._scope}/{op_type}" + (f"_{count}" if count else "")
        if output is None:
            output = ir.Value(name=f"{name}_output")
        if like is not None:
            output.type, output.shape = like.type, like.shape
        self._graph.append(ir.node(op_type, inputs, attributes, outputs=[output], name=name))
        return output

    def constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        return constant(self._graph, name, array)

    def shared(self, name: str, number: float, dtype: ir.DataType) -> ir.Value:
        """A number that every product may read."""
        return self.constant(f"quantization.{name}", np.array(number, dtype.numpy()))

    def last_axis(self) -> ir.Value:
        return self.constant(_LAST_AXIS, np.array([-1], np.int64))
