"""How does a bundle's canonical graph become a TensorRT network?

Function bodies are chosen, the cache gets its capacity, and the parser reads every weight where it lies: in the
mapped safetensors file, without a copy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from engines.session import EngineError
from engines.tensorrt.log import BuildLog
from plugins.tensorrt_rtx import choose_bodies


def load_graph(path: Path, dtype: str, capacity: int) -> onnx.ModelProto:
    """Read a canonical graph without its weights and fit it to TensorRT's parser.

    The bodies are the native ones for both flavours: a node whose plugin is registered never reads its body. float32
    has no fused attention and may be decomposed.

    Args:
        path: `vision.onnx` or `decoder.onnx` of a bundle.
        dtype: what it computes in, as the manifest says.
        capacity: tokens of the KV cache, L.
    """
    model = onnx.load(path, load_external_data=False)
    choose_bodies(model, is_decomposable=dtype == "float32")
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "L":
                dim.dim_value = capacity
    return model


@contextmanager
def parsed_network(
    trt: ModuleType, builder: Any, model: onnx.ModelProto, directory: Path, logger: Any, log: BuildLog
) -> Iterator[Any]:
    """The network of `model`, whose external weights lie in `directory`.

    Weights are mapped and must stay so until the engine is built: leave the context after that.

    Raises:
        EngineError: the parser refuses the graph; its errors are quoted with their nodes.
    """
    network = builder.create_network(0)  # always strongly typed since TensorRT 11
    parser = trt.OnnxParser(network, logger)
    mapped: dict[str, npt.NDArray[np.uint8]] = {}
    parsed = parser.load_model_proto(model.SerializeToString())
    for weight in model.graph.initializer:
        if parsed and weight.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in weight.external_data}
            name = place["location"]
            mapped.setdefault(name, np.memmap(directory / name, np.uint8, mode="r"))
            address = mapped[name].ctypes.data + int(place["offset"])
            parsed = parser.load_initializer(weight.name, address, int(place["length"]))
    if not (parsed and parser.parse_model_proto()):
        raise EngineError(refusal(trt, parser, model.graph.name, log))
    yield network


def refusal(trt: ModuleType, parser: Any, graph: str, log: BuildLog) -> str:
    """The parser's errors, each with its node and the function calls around it."""
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    lines = [f"{_place(error)}{error.desc().strip()}" for error in errors] or log.errors
    return f"{trt.__name__} {trt.__version__} cannot parse the {graph} graph:\n- " + "\n- ".join(lines)


def _place(error: Any) -> str:
    if not error.node_name() and not error.node_operator():
        return ""
    calls = "".join(f", in {call}" for call in error.local_function_stack())
    return f"{error.node_operator()} {error.node_name()}{calls}: "
