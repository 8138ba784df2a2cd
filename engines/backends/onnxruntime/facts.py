"""What does ONNX Runtime make of a bundle's graphs? Opened once, to prove that it takes them, and described.

There is nothing to keep but the description: fitting a graph takes milliseconds (7 and 35 ms for 2B), so that a saved
one would only be a second copy to go stale, and ONNX Runtime compiles when it loads.
"""

import resource
import time
from collections.abc import Iterator
from typing import Any

import onnx

from engines.backends.onnxruntime.graph import load_graph
from engines.backends.onnxruntime.session import OnnxRuntimeDecoder, OnnxRuntimeVision
from engines.sizing.limits import Limits
from export.bundle import Bundle
from export.config import ModelConfig, load_config
from export.contract import GraphContract, TensorSpec, decoder_contract, vision_contract
from plugins.onnx.function_body import MICROSOFT_DOMAIN
from plugins.registry import OP_DOMAIN


def graph_facts(bundle: Bundle, graph: str, limits: Limits) -> dict[str, Any]:
    """Open one graph as `run` does and describe it under the names of `engines.backends.facts.EngineFacts`.

    Raises:
        EngineError: ONNX Runtime refuses the graph.
    """
    start = time.perf_counter()
    config = load_config(bundle.directory)
    if graph == "vision":
        OnnxRuntimeVision(bundle, config)
    else:
        OnnxRuntimeDecoder(bundle, config, num_slots=limits.max_batch, capacity=limits.max_context)
    seconds = time.perf_counter() - start
    path = bundle.vision_graph if graph == "vision" else bundle.decoder_graph
    model = load_graph(path, config)
    contract = _contract(graph, config)
    return {
        "graph": graph,
        "inputs": [_tensor(spec) for spec in contract.inputs],
        "outputs": [_tensor(spec) for spec in contract.outputs],
        "layers": list(_layers(model)),
        "ops": dict(_ops(model)),
        "warnings": [],
        "seconds": round(seconds, 3),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "engine_bytes": 0,
    }


def _contract(graph: str, config: ModelConfig) -> GraphContract:
    contract = vision_contract if graph == "vision" else decoder_contract
    return contract(config, "float32")  # what ONNX Runtime computes in on CPU


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape), "profiles": []}


def _layers(model: onnx.ModelProto) -> Iterator[dict[str, str]]:
    for node in model.graph.node:
        op = node.op_type if node.domain == OP_DOMAIN else ""
        yield {"name": node.name, "type": node.op_type, "dtype": "float32", "node": node.name, "op": op}


def _ops(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Who computes each op of ours: a kernel of ONNX Runtime's own that its body calls, or standard operators."""
    for function in model.functions:
        if function.domain == OP_DOMAIN:
            domains = {node.domain for node in function.node} | {
                inner.domain
                for node in function.node
                for attribute in node.attribute
                for inner in attribute.g.node
            }
            yield function.name, "native" if MICROSOFT_DOMAIN in domains else "decomposed"
