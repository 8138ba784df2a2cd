"""A TensorRT network from a bundle's canonical graph.

Function bodies are chosen, the cache gets its capacity, and the parser reads every weight where it lies: in the
mapped safetensors file, without a copy.
"""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import onnx

from engines.backends.tensorrt.api import (
    Bindings,
    Builder,
    ILogger,
    INetworkDefinition,
    OnnxParser,
    ParserError,
)
from engines.backends.tensorrt.log import BuildLog
from engines.session import EngineError
from export.weights.slices import columns_of
from export.weights.values import mapped_values
from plugins.onnx.inline import inline_calls
from plugins.onnx.native import choose_native_bodies
from plugins.registry import COLLECTIVES, SIGNATURES, AttentionBody

_RELEASE_SECONDS = 0.02


def graph_for_parser(
    path: Path,
    attention: AttentionBody,
    capacity: int,
    probes: Sequence[str] = (),
    *,
    has_plugins: bool = False,
) -> onnx.ModelProto:
    """Read a canonical graph without its weights and fit it to TensorRT's parser.

    The bodies are the native ones for both targets: a node whose plugin is registered never reads its body.

    Args:
        path: `vision.onnx` or `decoder.onnx` of a bundle.
        attention: the body of its attention.
        capacity: tokens of the KV cache, L.
        probes: values of the graph that the engine shall give as further outputs.
        has_plugins: ops that have one stay calls, which is what the parser puts a plugin in the place of.
    """
    model = onnx.load(path, load_external_data=False)
    choose_native_bodies(model, attention)
    inlined = [op.name for op in SIGNATURES if not (has_plugins and op.attributes)]
    inline_calls(model, [*inlined, *(op.name for op in COLLECTIVES)])
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "L":
                dim.dim_value = capacity
    known = {output.name for output in model.graph.output}
    typed = {value.name: value for value in model.graph.value_info}
    model.graph.output.extend(typed[name] for name in probes if name not in known)
    return model


class MappedWeights:
    """The external initializers of a graph, in files that stay mapped as long as this lives.

    Columns of a stored matrix lie together in no file: this holds a copy of them, of one rank's share.
    """

    def __init__(self, model: onnx.ModelProto, directory: Path) -> None:
        self._columns = {
            weight.name: np.ascontiguousarray(mapped_values(weight, directory, _bits_dtype(weight)))
            for weight in model.graph.initializer
            if columns_of(weight) is not None
        }
        self._places = {
            weight.name: {entry.key: entry.value for entry in weight.external_data}
            for weight in model.graph.initializer
            if weight.data_location == onnx.TensorProto.EXTERNAL and weight.name not in self._columns
        }
        self._files = {
            name: _map(directory / name) for name in {place["location"] for place in self._places.values()}
        }

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        """Name, address and bytes of each weight."""
        for name, place in self._places.items():
            start = np.frombuffer(self._files[place["location"]], np.uint8).ctypes.data
            yield name, start + int(place["offset"]), int(place["length"])
        for name, columns in self._columns.items():
            yield name, columns.ctypes.data, columns.nbytes

    @contextmanager
    def releasing_pages(self) -> Iterator[None]:
        """Take what was read out of this process's memory as it goes; the page cache gives it again when asked.

        The kernel would do the same under pressure. Done early, a build needs room for one copy of the weights, its
        own, and shows it.
        """
        is_done = Event()

        def release() -> None:
            while not is_done.wait(_RELEASE_SECONDS):
                for file in self._files.values():
                    file.madvise(mmap.MADV_DONTNEED)

        thread = Thread(target=release, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_done.set()
            thread.join()


def _bits_dtype(weight: onnx.TensorProto) -> np.dtype[Any]:
    """Unsigned integers of the size of a weight's values: their bits are moved, not read."""
    return np.dtype(f"u{onnx.helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize}")


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def parse_network(
    trt: Bindings,
    builder: Builder,
    model: onnx.ModelProto,
    weights: MappedWeights,
    logger: ILogger,
    log: BuildLog,
) -> INetworkDefinition:
    """The network of `model`. It reads `weights` where they lie: keep them until the engine is built.

    Raises:
        EngineError: the parser refuses the graph; its errors are quoted with their nodes.
    """
    network = builder.create_network(0)  # always strongly typed since TensorRT 11
    parser = trt.OnnxParser(network, logger)
    is_parsed = (
        parser.load_model_proto(model.SerializeToString())
        and all(parser.load_initializer(name, address, size) for name, address, size in weights)
        and parser.parse_model_proto()
    )
    if not is_parsed:
        raise EngineError(refusal(trt, parser, model.graph.name, log))
    return network


def refusal(trt: Bindings, parser: OnnxParser, graph: str, log: BuildLog) -> str:
    """The parser's errors, each with its node and the function calls around it."""
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    lines = [f"{_place(error)}{error.desc().strip()}" for error in errors] or log.errors
    return f"{trt.__name__} {trt.__version__} cannot parse the {graph} graph:\n- " + "\n- ".join(lines)


def _place(error: ParserError) -> str:
    if not error.node_name() and not error.node_operator():
        return ""
    calls = "".join(f", in {call}" for call in error.local_function_stack())
    return f"{error.node_operator()} {error.node_name()}{calls}: "
