"""The file of a bundle that holds its quantized linear layers, in the bytes that its graphs read.

Of a weight w [N, K] in G blocks, `quantized.safetensors` holds, under the weight's published name and a suffix:

| suffix | dtype and shape | what |
|---|---|---|
| `.codes` | U8 [K, N / 2] (or flat, N odd) | int4: ONNX's INT4 [K, N] |
| | I8 [K, N] | int8 |
| | F8_E4M3 [N, K] | fp8 |
| `.scales` | BF16, F16 or F32 [G, N] | in the first of them that holds the checkpoint's scales exactly |
| `.zeros` | I8 or I32 [G, N] | zero points, of asymmetric ones |
| `.order` | I32 [K] | which of x each column multiplies, where they are not in order |
| `.activation_scale` | F32 [1]; [0]: each token has its own | where x is rounded too |

8-bit codes in blocks lie as two planes of 4 bits: K is then twice the inputs, and `.order` has each of them twice
(`QuantizedLinear.in_planes`). [K, N] is the orientation of a weight that ONNX Runtime and TensorRT both multiply in few
bits.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.dtypes import numpy_dtype
from export.errors import UserError
from export.quantization.linear import Array, Precision, QuantizedLinear
from export.quantization.packing import packed_int4, unpacked_int4
from export.weights.safetensors_file import StoredTensor
from export.weights.values import read_values
from export.weights.writer import write_streamed

PARTS = ("codes", "scales", "zeros", "order", "activation_scale")

_PRECISION_OF: Mapping[str, Precision] = {"uint8": "int4", "int8": "int8", "float8_e4m3fn": "fp8"}
_SCALE_DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class StoredLinear:
    """Where a quantized linear layer's parts lie; what can be known of it without reading them."""

    name: str
    """Published, of its weight: `model.layers.0.mlp.up_proj.weight`."""
    shape: tuple[int, int]
    """[N, inputs] of the weight."""
    parts: Mapping[str, StoredTensor]
    """By `PARTS`."""

    @property
    def precision(self) -> Precision:
        return _PRECISION_OF[self.parts["codes"].dtype]

    @property
    def num_blocks(self) -> int:
        """G."""
        return self.parts["scales"].shape[0]

    @property
    def block(self) -> int:
        """How many columns share a scale."""
        return self.num_columns // self.num_blocks

    @property
    def num_columns(self) -> int:
        """K: the inputs, or twice as many where 8-bit codes lie as two planes of 4 bits."""
        order = self.parts.get("order")
        return self.shape[1] if order is None else order.shape[0]

    @property
    def num_planes(self) -> int:
        """How many columns multiply an input."""
        return self.num_columns // self.shape[1]

    @property
    def is_symmetric(self) -> bool:
        return "zeros" not in self.parts

    @property
    def activations(self) -> str | None:
        """How x is rounded before the product: None, "per_token" or "static"."""
        scale = self.parts.get("activation_scale")
        return None if scale is None else "static" if scale.length_bytes else "per_token"

    def read(self) -> QuantizedLinear:
        """Its values.

        Raises:
            OSError: the file cannot be read.
        """
        num_outputs, num_columns = self.shape[0], self.num_columns
        values = {part: read_values(stored) for part, stored in self.parts.items()}
        codes = values["codes"]
        if self.precision == "int4":
            codes = unpacked_int4(codes.reshape(-1), num_columns * num_outputs)
            codes = codes.reshape(num_columns, num_outputs)
        scale = values.get("activation_scale")
        zeros = values.get("zeros")
        order = values.get("order")
        if order is not None and not _are_permutations(order, self.shape[1]):
            raise UserError(f"{self.name}.order must hold every input once.", "Export the checkpoint again.")
        return QuantizedLinear(
            precision=self.precision,
            codes=codes if self.precision == "fp8" else codes.T,
            scales=values["scales"].T.astype(np.float32),
            zeros=None if zeros is None else zeros.T.astype(np.int16),
            order=None if order is None else order.astype(np.int32),
            activations=None if scale is None else float(scale[0]) if scale.size else "per_token",
        )


def _are_permutations(order: Array, num_inputs: int) -> bool:
    planes = np.sort(order.reshape(-1, num_inputs), axis=1)
    return bool((planes == np.arange(num_inputs)).all())


def write_quantized(path: Path, names: Iterable[str], linear_of: Callable[[str], QuantizedLinear]) -> None:
    """Write a new file of quantized linear layers, one after the other: memory holds one of them.

    Args:
        path: must not exist.
        names: published, of the weights.
        linear_of: called once for each, in this order.
    """
    names = list(names)

    def tensors() -> Iterator[tuple[str, Array]]:
        for name in names:
            for part, values in _stored_parts(linear_of(name)):
                yield f"{name}.{part}", values

    write_streamed(path, tensors(), most_names=[f"{name}.{part}" for name in names for part in PARTS])


def _stored_parts(linear: QuantizedLinear) -> Iterator[tuple[str, Array]]:
    linear = linear.in_planes()
    if linear.precision == "int4":
        linear = linear.in_small_blocks()
    num_outputs, num_inputs = linear.shape
    if linear.precision == "int4":
        packed = packed_int4(np.ascontiguousarray(linear.codes.T))
        yield "codes", packed if num_outputs % 2 else packed.reshape(num_inputs, num_outputs // 2)
    else:
        yield "codes", linear.codes if linear.precision == "fp8" else linear.codes.T
    # The wider before the narrower, so that values stay aligned in a mapped file.
    if linear.order is not None:
        yield "order", linear.order
    if linear.activations is not None:
        per_token = linear.activations == "per_token"
        yield "activation_scale", np.array([] if per_token else [linear.activations], np.float32)
    yield "scales", _narrowest(linear.scales).T
    if linear.zeros is not None:
        bounds = np.iinfo(np.int8)
        fits = bounds.min <= linear.zeros.min() and linear.zeros.max() <= bounds.max
        yield "zeros", linear.zeros.T.astype(np.int8 if fits else np.int32)


def _narrowest(scales: Array) -> Array:
    """In the first dtype that holds them all exactly."""
    for dtype in _SCALE_DTYPES[:-1]:
        with np.errstate(over="ignore"):
            narrow = scales.astype(numpy_dtype(dtype))
        if np.array_equal(narrow.astype(np.float32), scales):
            return narrow
    return scales


def stored_linears(
    tensors: Iterable[StoredTensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, StoredLinear]:
    """The layers that a file's tensors are parts of, by the weight's published name.

    Args:
        tensors: of `write_quantized`'s file.
        shapes: what each weight of the model must be.

    Raises:
        UserError: parts that do not belong to a weight or do not fit; all at once.
    """
    found: dict[str, dict[str, StoredTensor]] = {}
    problems: list[str] = []
    for tensor in tensors:
        name, _, part = tensor.name.rpartition(".")
        if part in PARTS and len(shapes.get(name, ())) == 2:
            found.setdefault(name, {})[part] = tensor
        else:
            problems.append(f"{tensor.name}: part of no quantized layer")
    linears = {}
    for name, parts in found.items():
        num_outputs, num_inputs = shapes[name]
        if wrong := _part_problems(parts, num_outputs, num_inputs):
            problems += [f"{name}.{problem}" for problem in wrong]
        else:
            linears[name] = StoredLinear(name, (num_outputs, num_inputs), parts)
    if problems:
        raise UserError(
            "The quantized weights are not those of this model:\n- "
            + "\n- ".join(problems)
            + "\nExport the checkpoint again."
        )
    return linears


def _part_problems(parts: Mapping[str, StoredTensor], num_outputs: int, num_inputs: int) -> list[str]:
    missing = [f"{part}: missing" for part in ("codes", "scales") if part not in parts]
    if missing:
        return missing
    scales, order = parts["scales"], parts.get("order")
    if order is not None and parts["codes"].dtype == "uint8" and order.shape == (2 * num_inputs,):
        num_inputs *= 2
    num_blocks = scales.shape[0] if scales.shape else 0
    if num_blocks < 1 or num_inputs % num_blocks:
        return [f"scales: {num_blocks} blocks do not divide {num_inputs} inputs"]
    halved: tuple[int, ...] = (num_inputs, num_outputs // 2)
    if num_outputs % 2:
        halved = ((num_inputs * num_outputs + 1) // 2,)
    table = (num_blocks, num_outputs)
    allowed: dict[str, list[tuple[str, tuple[int, ...]]]] = {
        "codes": [
            ("uint8", halved),
            ("int8", (num_inputs, num_outputs)),
            ("float8_e4m3fn", (num_outputs, num_inputs)),
        ],
        "scales": [(dtype, table) for dtype in _SCALE_DTYPES],
        "zeros": [("int8", table), ("int32", table)],
        "order": [("int32", (num_inputs,))],
        "activation_scale": [("float32", (0,)), ("float32", (1,))],
    }
    return [
        f"{part}: {tensor.dtype} {list(tensor.shape)}, expected "
        + " or ".join(f"{dtype} {list(shape)}" for dtype, shape in allowed[part])
        for part, tensor in parts.items()
        if (tensor.dtype, tensor.shape) not in allowed[part]
    ]
