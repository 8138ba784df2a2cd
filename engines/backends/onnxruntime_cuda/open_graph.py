"""A bundle's graph as a session of ONNX Runtime on a device."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime as ort

from engines.backends.candidates import add_candidates
from engines.backends.graph_interface import require_interface
from engines.backends.onnxruntime.graph import load_graph as load_cpu_graph
from engines.backends.onnxruntime.graph import raised_weights
from engines.backends.onnxruntime.quantized import has_codes
from engines.backends.onnxruntime_cuda.device import Device
from engines.backends.onnxruntime_cuda.graph import load_graph
from engines.session import EngineError
from export.bundle import Bundle
from export.contract import GraphName, decoder_contract, vision_contract

_LOGGER = logging.getLogger(__name__)
_ERROR_AND_ABOVE = 3


@dataclass(frozen=True, eq=False)
class OpenGraph:
    """A graph that is open on a device."""

    session: ort.InferenceSession
    dtype: str
    """What it computes in, and of its cache."""
    has_graphs: bool
    """Whether repeated calls are replayed as CUDA graphs."""
    weights: Sequence[Any]
    """Shared with the session: they must live as long as it does."""


def compute_dtype(bundle: Bundle, device: Device) -> str:
    """What a bundle's graphs compute in on a device: their own dtype on a GPU, float32 on a CPU."""
    return bundle.manifest.dtype if device.kind == "cuda" else "float32"


def open_graph(
    bundle: Bundle,
    name: GraphName,
    device: Device,
    num_threads: int | None = None,
    *,
    outputs: Sequence[str] = (),
    wants_graphs: bool = False,
) -> OpenGraph:
    """Open one graph of a bundle.

    Args:
        bundle: whose graph is opened.
        name: which; a decoder gives candidates beside its logits.
        device: where it computes.
        num_threads: of the CPU, where the device is one; None takes every core.
        outputs: values inside the graph to give as well.
        wants_graphs: let repeated calls be replayed as CUDA graphs, where ONNX Runtime can.

    Raises:
        UserError: the graph is not the one that its name and the configuration say, or cannot be computed here.
        EngineError: ONNX Runtime refuses it, or has no such device.
    """
    path, config, dtype = bundle.graph(name), bundle.config, compute_dtype(bundle, device)
    is_gpu = device.kind == "cuda"
    model = load_graph(path, config, dtype) if is_gpu else load_cpu_graph(path, config)
    contract = vision_contract if name == "vision" else decoder_contract
    require_interface(model, contract(config, bundle.manifest.dtype), path)
    if name == "decoder":
        add_candidates(model, config)
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(output) for output in outputs if output not in known
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads or len(os.sched_getaffinity(0))
    options.log_severity_level = _ERROR_AND_ABOVE
    # Every prompt and image has its own shapes, for each of which a plan of memory would be kept.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    folder = str(path.parent)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    weights = []
    if not is_gpu:
        for weight, array in raised_weights(model, path.parent):
            weights.append(ort.OrtValue.ortvalue_from_numpy(array))
            options.add_initializer(weight, weights[-1])
        if not has_codes(model):
            options.add_session_config_entry("session.disable_prepacking", "1")
    session, has_graphs = _session(model.SerializeToString(), options, device, wants_graphs and is_gpu)
    return OpenGraph(session, dtype, has_graphs, weights)


def _session(
    model: bytes, options: ort.SessionOptions, device: Device, wants_graphs: bool
) -> tuple[ort.InferenceSession, bool]:
    """A session, with CUDA graphs if they are wanted and ONNX Runtime finds that it can capture this graph."""
    try:
        providers = device.providers(has_graphs=wants_graphs)
        session = ort.InferenceSession(model, options, providers=providers)
    except Exception as error:
        if wants_graphs:
            _LOGGER.warning("ONNX Runtime replays no CUDA graphs of this decoder: %s", error)
            return _session(model, options, device, wants_graphs=False)
        raise EngineError(
            f"ONNX Runtime {ort.__version__} refuses the graph on {device.name}: {error}"
        ) from error
    if device.kind == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise EngineError(
            f"ONNX Runtime {ort.__version__} cannot use {device.name}: its CUDA provider did not load. "
            "`qv-export doctor` says what is missing."
        )
    return session, wants_graphs
