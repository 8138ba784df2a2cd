"""Traces one block of the reference into ONNX nodes, without its weights.

The block is built under fake tensors, traced by `torch.export` and translated by `torch.onnx`: seconds, and no memory
for weights. What comes back is a template that `stamp` copies once for each layer.
"""

import contextlib
import functools
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.onnx._internal.exporter._registration import ONNXRegistry

from export.graphs.simplify import simplify_reshapes
from export.models.pieces import Piece, PieceInput

# The newest opset torch.onnx 2.13 translates to. Nothing in it that blocks use changed in 24 but accepted types.
_TRANSLATION_OPSET = 23

# Sizes by which dynamic dims are traced: distinct and above 1, so that none is specialised or taken for another.
_EXAMPLE_SIZES = {"P": 24, "N + 1": 5, "M": 7, "V": 6, "B": 2, "S": 3, "L": 11, "Q": 13}


class _Method(nn.Module):
    """One method of a module as a module of its own, which is what `torch.export` takes."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module = module
        self._method = method

    def forward(self, *arguments: Tensor) -> Any:
        return getattr(self.module, self._method)(*arguments)


def trace_piece(piece: Piece, dtype: torch.dtype) -> ir.Graph:
    """Trace a method of the module that the piece builds. Args: dtype: of the module's parameters.

    Returns:
        A graph whose inputs are the piece's, whose initializers are the module's parameters under their module paths
        (without bytes), whose nodes are named `<module path>/<op type>`, whose dynamic dims are the contract's letters.
    """
    with _default_dtype(dtype), FakeTensorMode():
        program = torch.export.export(
            _Method(piece.build(), piece.method),
            tuple(_example(item) for item in piece.inputs),
            dynamic_shapes=(tuple(_dynamic_dims(item) for item in piece.inputs),),
            strict=False,
        )
    with _quiet_exporter(), _shared_translations():
        translated = torch.onnx.export(
            program, dynamo=True, optimize=False, opset_version=_TRANSLATION_OPSET, verbose=False
        )
    assert translated is not None
    graph = translated.model.graph
    _drop_wrapper(graph, piece.inputs)
    _rename_dims(graph, piece.inputs)
    simplify_reshapes(graph)
    _name_nodes(graph)
    for value, name in zip(graph.outputs, piece.outputs, strict=True):
        value.name = name
    return graph


def _example(item: PieceInput) -> Tensor:
    return torch.empty(
        [_EXAMPLE_SIZES[dim] if isinstance(dim, str) else dim for dim in item.shape], dtype=item.dtype
    )


def _dynamic_dims(item: PieceInput) -> dict[int, object]:
    return {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(item.shape) if isinstance(dim, str)}


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns about torchvision, which we do not use, and about deprecations inside torch itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


_translations = functools.cache(ONNXRegistry.from_torchlib)


@contextlib.contextmanager
def _shared_translations() -> Iterator[None]:
    """Let every piece read one table of translations.

    `torch.onnx.export` makes it anew at each call by parsing the source of some 500 functions: two fifths of an
    export's time, measured with torch 2.13 and onnxscript 0.7.2. Nothing of ours changes the table.
    """
    before = ONNXRegistry.from_torchlib
    ONNXRegistry.from_torchlib = staticmethod(_translations)  # type: ignore[method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = before  # type: ignore[method-assign]


def _drop_wrapper(graph: ir.Graph, inputs: Sequence[PieceInput]) -> None:
    """Undo the names that `_Method` brought: inputs args_0, args_1, and `module.` before each parameter."""
    for value, item in zip(graph.inputs, inputs, strict=True):
        value.name = item.name
    for name, value in list(graph.initializers.items()):
        value.name = name.removeprefix("module.")


def _rename_dims(graph: ir.Graph, inputs: Sequence[PieceInput]) -> None:
    """Give torch's symbols (s39) the contract's letters (B), also inside products (s22*s39)."""
    letters: dict[str, str] = {}
    for value, item in zip(graph.inputs, inputs, strict=True):
        assert value.shape is not None
        for symbol, dim in zip(value.shape, item.shape, strict=True):
            if isinstance(dim, str):
                letters[str(symbol)] = dim
    for value in _all_values(graph):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, letters) for dim in value.shape])


def _renamed(dim: int | ir.SymbolicDim, letters: Mapping[str, str]) -> int | str:
    if isinstance(dim, int):
        return dim
    return re.sub(r"[a-z]\d+", lambda match: letters.get(match[0], match[0]), str(dim))


def _all_values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _name_nodes(graph: ir.Graph) -> None:
    """Name nodes and values after the module they come from: `self_attn/q_proj/MatMul`."""
    counts: dict[str, int] = {}
    for node in graph:
        name = "/".join([*_module_path(node), node.op_type])
        counts[name] = counts.get(name, -1) + 1
        node.name = f"{name}_{counts[name]}" if counts[name] else name
        node.metadata_props.clear()  # torch's own: stack traces with paths of the exporting machine
        for i, value in enumerate(node.outputs):
            value.name = f"{node.name}_output_{i}"
            value.metadata_props.clear()


def _module_path(node: ir.Node) -> list[str]:
    """torch.onnx records scopes as a list literal, from '' over module paths to the traced call's own name."""
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
    return scopes[-2].split(".")[1:] if len(scopes) >= 2 else []  # without the wrapper's own "module"
