"""What ONNX Runtime makes of a bundle's graphs: opened once, to prove that it takes them, and described.

There is nothing to keep but the description: fitting a graph takes milliseconds (7 and 35 ms for 2B), so that a saved
one would only be a second copy to go stale, and ONNX Runtime compiles when it loads.
"""

import resource
import time
from collections.abc import Iterator
from importlib.metadata import version

import onnx
import onnxruntime as ort

from engines.backends.facts import EngineFacts, Implementation, LayerFacts, TensorFacts
from engines.backends.onnxruntime.graph import load_graph
from engines.backends.onnxruntime.kernels import kernels_by_codes
from engines.backends.onnxruntime.session import OnnxRuntimeStage, OnnxRuntimeVision
from engines.backends.quantized_products import quantized_products, told
from engines.sizing.limits import Limits
from export.bundle import Bundle
from export.contract import GraphName, TensorSpec
from plugins.onnx.function_body import MICROSOFT_DOMAIN
from plugins.registry import OP_DOMAIN

_EXPANDED = {"fp8": "it has no products of 8-bit floats on a CPU. Their values are used, in float32"}


def graph_facts(bundle: Bundle, graph: GraphName, limits: Limits) -> EngineFacts:
    """Open one graph as `run` does and describe it.

    Raises:
        EngineError: ONNX Runtime refuses the graph.
    """
    start = time.perf_counter()
    if graph == "vision":
        OnnxRuntimeVision(bundle)
    else:
        stage = next(stage for stages in bundle.rank_stages for stage in stages if stage.graph == graph)
        OnnxRuntimeStage(bundle, stage, num_slots=limits.max_batch, capacity=limits.max_context)
    seconds = time.perf_counter() - start
    model = load_graph(bundle.graph(graph), bundle.rank_config)
    canonical = onnx.load(bundle.graph(graph), load_external_data=False)
    by_codes = kernels_by_codes(bundle, graph) if quantized_products(canonical.graph) else set[str]()
    notes, warnings = told(canonical, by_codes, "onnxruntime", _EXPANDED)
    contract = bundle.contract(graph, "float32")  # what ONNX Runtime computes in on CPU
    return EngineFacts(
        graph=graph,
        target="onnxruntime",
        tools={"onnxruntime": ort.__version__, "qv-export": version("qv-export")},
        sm=(),
        inputs=tuple(map(_tensor, contract.inputs)),
        outputs=tuple(map(_tensor, contract.outputs)),
        layers=tuple(_layers(model)),
        ops=dict(_ops(model)),
        warnings=warnings,
        seconds=round(seconds, 3),
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        engine_bytes=0,
        notes=notes,
    )


def _tensor(spec: TensorSpec) -> TensorFacts:
    return TensorFacts(spec.name, spec.dtype, spec.shape)


def _layers(model: onnx.ModelProto) -> Iterator[LayerFacts]:
    for node in model.graph.node:
        op = node.op_type if node.domain == OP_DOMAIN else ""
        yield LayerFacts(node.name, node.op_type, "float32", node.name, op)


def _ops(model: onnx.ModelProto) -> Iterator[tuple[str, Implementation]]:
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
