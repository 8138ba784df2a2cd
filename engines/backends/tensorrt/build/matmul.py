"""An engine of one matrix product, to see what the library itself reaches on a GPU."""

from pathlib import Path

from onnx import ModelProto, helper

from engines.backends.tensorrt.api import Bindings
from engines.backends.tensorrt.build.configuration import apply_options, write_engine
from engines.backends.tensorrt.build.network import MappedWeights, parse_network
from engines.backends.tensorrt.log import BuildLog, make_logger
from engines.backends.tensorrt.options import BuildOptions
from export.dtypes import onnx_dtype

SIDE = 8192
"""Rows and columns: large enough to fill a card of the largest kind."""
_OPSET, _IR_VERSION = 24, 13


def matmul_graph(dtype: str, side: int = SIDE) -> ModelProto:
    """`a` and `b` [side, side] to their product `y`."""
    [a, b, y] = [
        helper.make_tensor_value_info(name, onnx_dtype(dtype), [side, side]) for name in ("a", "b", "y")
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["y"], name="product")], "matmul", [a, b], [y]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def build_matmul(trt: Bindings, options: BuildOptions, dtype: str, output: Path, side: int = SIDE) -> None:
    """Write the engine, in this process: it takes a second.

    Raises:
        EngineError: TensorRT refuses it; its own words are quoted.
    """
    log = BuildLog()
    logger = make_logger(trt, log)
    builder = trt.Builder(logger)
    model = matmul_graph(dtype, side)
    network = parse_network(trt, builder, model, MappedWeights(model, output.parent), logger, log)
    config = builder.create_builder_config()
    apply_options(trt, config, options)
    write_engine(trt, builder, network, config, output, log)
