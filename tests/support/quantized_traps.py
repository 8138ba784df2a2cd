"""Graphs with quantized weights that a consumer computes rightly and slowly: it expands the weights first.

One table for three tests: the lint must find each, and TensorRT-RTX or ONNX Runtime must still do what the lint says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

K, N, BLOCK = 256, 128, 64
PRODUCT = "product"
"""Name of the node in question."""
FLOAT_OF = {"tensorrt-rtx": TensorProto.BFLOAT16, "onnxruntime": TensorProto.FLOAT}


@dataclass
class Parts:
    """What a trap is made of: initializers and nodes that make "y" of "x" [M, K] in `dtype`."""

    dtype: int
    initializers: list[TensorProto] = field(default_factory=list)
    nodes: list[NodeProto] = field(default_factory=list)

    def codes(self, name: str, kind: int, shape: Sequence[int]) -> None:
        bits = 4 if kind in {TensorProto.INT4, TensorProto.FLOAT4E2M1} else 8
        count = int(np.prod(shape)) * bits // 8
        # 0x77 at most: no bit pattern of an 8-bit float that is not a number.
        content = np.random.default_rng(3).integers(0, 0x78, count, dtype=np.uint8)
        self.initializers.append(helper.make_tensor(name, kind, shape, content.tobytes(), raw=True))

    def scales(self, name: str, shape: Sequence[int], dtype: int | None = None) -> None:
        values = np.random.default_rng(4).uniform(0.01, 0.02, shape)
        self.constant(name, values, dtype)

    def constant(self, name: str, values: object, dtype: int | None = None) -> None:
        kind = helper.tensor_dtype_to_np_dtype(self.dtype if dtype is None else dtype)
        self.initializers.append(numpy_helper.from_array(np.asarray(values).astype(kind), name))

    def node(self, op: str, inputs: Sequence[str], output: str, name: str = "", **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, inputs, [output], name or f"{op}_{output}", **attributes))

    def weight(self, kind: int, scales: Sequence[int], **attributes: Any) -> None:
        """Dequantized codes [K, N], named w."""
        self.codes("q", kind, (K, N))
        self.scales("s", scales)
        self.node("DequantizeLinear", ["q", "s"], "w", **attributes)

    def rounding(self, x: str, output: str, scale: str, zero: str) -> None:
        self.node("QuantizeLinear", [x, scale, zero], f"{output}_q")
        self.node("DequantizeLinear", [f"{output}_q", scale, zero], output)


@dataclass(frozen=True)
class QuantizedTrap:
    """A graph, what the lint says of it, and who expands its weights."""

    add: Callable[[Parts], None]
    finding: str
    expanded_by: str = "tensorrt-rtx"
    sm: int = 89
    ends: str = "expanded"
    """Or "unbuildable"."""

    def model(self) -> onnx.ModelProto:
        parts = Parts(FLOAT_OF[self.expanded_by])
        self.add(parts)
        outputs = sorted({node.output[0] for node in parts.nodes if node.output[0].startswith("y")})
        graph = helper.make_graph(
            parts.nodes,
            "trap",
            [helper.make_tensor_value_info("x", parts.dtype, ["M", K])],
            [helper.make_tensor_value_info(name, parts.dtype, ["M", N]) for name in outputs],
            parts.initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


def _four_bits_for_whole_outputs(parts: Parts) -> None:
    parts.weight(TensorProto.INT4, (N,), axis=1)
    parts.node("MatMul", ["x", "w"], "y", PRODUCT)


def _four_bits_in_one_block(parts: Parts) -> None:
    parts.weight(TensorProto.INT4, (1, N), axis=0, block_size=K)
    parts.node("MatMul", ["x", "w"], "y", PRODUCT)


def _four_bits_output_major(parts: Parts) -> None:
    parts.codes("q", TensorProto.INT4, (N, K))
    parts.scales("s", (N, K // BLOCK))
    parts.node("DequantizeLinear", ["q", "s"], "w", axis=1, block_size=BLOCK)
    parts.node("Transpose", ["w"], "t", perm=[1, 0])
    parts.node("MatMul", ["x", "t"], "y", PRODUCT)


def _four_bits_of_three_axes(parts: Parts) -> None:
    parts.codes("q", TensorProto.INT4, (N, K // BLOCK, BLOCK))
    parts.scales("s", (N, K // BLOCK, 1))
    parts.node("DequantizeLinear", ["q", "s"], "w", axis=2, block_size=BLOCK)
    parts.constant("shape", [N, K], TensorProto.INT64)
    parts.node("Reshape", ["w", "shape"], "flat")
    parts.node("Transpose", ["flat"], "t", perm=[1, 0])
    parts.node("MatMul", ["x", "t"], "y", PRODUCT)


def _zero_points_on_the_weight(parts: Parts) -> None:
    parts.codes("q", TensorProto.INT4, (K, N))
    parts.scales("s", (K // BLOCK, N))
    parts.scales("o", (K, N))
    parts.node("DequantizeLinear", ["q", "s"], "c", axis=0, block_size=BLOCK)
    parts.node("Sub", ["c", "o"], "w")
    parts.node("MatMul", ["x", "w"], "y", PRODUCT)


def _eight_bits_in_blocks(kind: int) -> Callable[[Parts], None]:
    def add(parts: Parts) -> None:
        parts.weight(kind, (K // BLOCK, N), axis=0, block_size=BLOCK)
        parts.node("MatMul", ["x", "w"], "y", PRODUCT)

    return add


def _dequantized_in_another_dtype(parts: Parts) -> None:
    parts.codes("q", TensorProto.INT4, (K, N))
    parts.scales("s", (K // BLOCK, N), TensorProto.FLOAT)
    parts.node("DequantizeLinear", ["q", "s"], "f", axis=0, block_size=BLOCK)
    parts.node("Cast", ["f"], "w", to=parts.dtype)
    parts.node("MatMul", ["x", "w"], "y", PRODUCT)


def _dequantized_to_another_dtype(parts: Parts) -> None:
    parts.codes("q", TensorProto.INT4, (K, N))
    parts.scales("s", (K // BLOCK, N), TensorProto.FLOAT16)
    parts.node("DequantizeLinear", ["q", "s"], "w", axis=0, block_size=BLOCK, output_dtype=parts.dtype)
    parts.node("MatMul", ["x", "w"], "y", PRODUCT)


def _computed_scale(parts: Parts) -> None:
    parts.weight(TensorProto.INT8, (N,), axis=1)
    parts.node("Abs", ["x"], "a")
    parts.node("ReduceMax", ["a"], "largest", keepdims=0)
    parts.constant("inverse", 1 / 127)
    parts.node("Mul", ["largest", "inverse"], "scale")
    parts.constant("zero", 0, TensorProto.INT8)
    parts.rounding("x", "r", "scale", "zero")
    parts.node("MatMul", ["r", "w"], "y", PRODUCT)


def _one_rounding_for_two_products(parts: Parts) -> None:
    parts.weight(TensorProto.INT8, (N,), axis=1)
    parts.codes("q2", TensorProto.INT8, (K, N))
    parts.node("DequantizeLinear", ["q2", "s"], "w2", axis=1)
    parts.constant("scale", 0.05)
    parts.constant("zero", 0, TensorProto.INT8)
    parts.rounding("x", "r", "scale", "zero")
    parts.node("MatMul", ["r", "w"], "y", PRODUCT)
    parts.node("MatMul", ["r", "w2"], "y2", "other")


def _equal_roundings(parts: Parts) -> None:
    parts.weight(TensorProto.INT8, (N,), axis=1)
    parts.codes("q2", TensorProto.INT8, (K, N))
    parts.node("DequantizeLinear", ["q2", "s"], "w2", axis=1)
    parts.constant("scale", 0.05)
    parts.constant("zero", 0, TensorProto.INT8)
    parts.rounding("x", "r", "scale", "zero")
    parts.rounding("x", "r2", "scale", "zero")
    parts.node("MatMul", ["r", "w"], "y", PRODUCT)
    parts.node("MatMul", ["r2", "w2"], "y2", "other")


def _four_bit_floats(parts: Parts) -> None:
    parts.codes("q", TensorProto.FLOAT4E2M1, (K, N))
    blocks = np.ones((K // 16, N), ml_dtypes.float8_e4m3fn)
    parts.initializers.append(numpy_helper.from_array(blocks, "b"))
    parts.constant("g", 0.01)
    parts.node("DequantizeLinear", ["b", "g"], "s")
    parts.node("DequantizeLinear", ["q", "s"], "w", axis=0, block_size=16)
    parts.node("MatMul", ["x", "w"], "y", PRODUCT)


QUANTIZED_TRAPS: Mapping[str, QuantizedTrap] = {
    "4 bits, a scale for each output": QuantizedTrap(
        _four_bits_for_whole_outputs, "4-bit codes with a scale for each output"
    ),
    "4 bits, one block": QuantizedTrap(_four_bits_in_one_block, "4-bit codes with a scale for each output"),
    "4 bits [N, K]": QuantizedTrap(_four_bits_output_major, "Store them as [K, N], in blocks", "onnxruntime"),
    "4 bits of three axes": QuantizedTrap(_four_bits_of_three_axes, "4-bit codes of 3 axes"),
    "zero points taken from the weight": QuantizedTrap(_zero_points_on_the_weight, "is read by Sub"),
    "int8 in blocks": QuantizedTrap(_eight_bits_in_blocks(TensorProto.INT8), "8-bit codes in blocks"),
    "fp8 in blocks": QuantizedTrap(_eight_bits_in_blocks(TensorProto.FLOAT8E4M3FN), "8-bit codes in blocks"),
    "dequantized in another dtype": QuantizedTrap(_dequantized_in_another_dtype, "is cast"),
    "dequantized to another dtype": QuantizedTrap(
        _dequantized_to_another_dtype, "has output_dtype", ends="unbuildable"
    ),
    "a computed scale": QuantizedTrap(_computed_scale, "has a computed scale", ends="not integers"),
    "one rounding for two products": QuantizedTrap(
        _one_rounding_for_two_products, "2 products read", "onnxruntime"
    ),
    "equal roundings": QuantizedTrap(_equal_roundings, "2 roundings of x share", "onnxruntime"),
    "4-bit floats": QuantizedTrap(_four_bit_floats, "4-bit floats", sm=120),
}
