"""Compiles one graph of a bundle into one engine file, in the building process (`worker.py` beside this file)."""

import errno
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

from engines.backends.candidates import add_candidates
from engines.backends.facts import EngineFacts, LayerFacts, TensorFacts
from engines.backends.graph_interface import require_interface
from engines.backends.quantized_products import told
from engines.backends.tensorrt.api import Bindings, ILogger
from engines.backends.tensorrt.attention import attention_bodies, attention_notes
from engines.backends.tensorrt.build.configuration import (
    NoKernelError,
    add_profiles,
    apply_options,
    timing_cache,
    write_engine,
)
from engines.backends.tensorrt.build.judged_warnings import judged
from engines.backends.tensorrt.build.low_bit import products_by_codes, require_architectures
from engines.backends.tensorrt.build.network import MappedWeights, graph_for_parser, parse_network
from engines.backends.tensorrt.build.profiles import graph_profiles, require_small_padding
from engines.backends.tensorrt.build.registration import register_for_build
from engines.backends.tensorrt.description import describe_layers, describe_tensors, ops_of
from engines.backends.tensorrt.library import library_versions, load_bindings
from engines.backends.tensorrt.log import BuildLog, Progress, make_logger, make_progress_monitor, throttled
from engines.backends.tensorrt.options import BuildRequest, require_attention
from engines.session import EngineError
from export.bundle import Bundle, open_bundle
from export.contract import with_candidates
from export.errors import UserError
from plugins.registry import AttentionBody

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def compile_engine(request: BuildRequest, progress: Progress) -> EngineFacts:
    """Build, write the engine to `request.output`, and say what was built.

    The attention has several bodies. The next one is tried where TensorRT has no kernel for the one before, which it
    says in the first seconds of a build.

    Raises:
        UserError: the target is not installed, limits or architectures that it cannot serve, no space for the engine.
        EngineError: TensorRT refuses the graph; its own words are quoted.
    """
    started = time.perf_counter()
    trt, sm = load_bindings(request.options.target), request.options.sm
    if request.options.target == "tensorrt":
        sm = register_for_build(request.options)
    bundle = open_bundle(request.bundle)
    dtype, capacity = bundle.manifest.dtype, request.limits.max_context
    if request.graph == "vision" and request.options.target == "tensorrt-rtx":
        require_small_padding(bundle.config, request.limits)
    config = bundle.rank_config
    require_attention(config, request.limits, request.options)
    canonical = onnx.load(bundle.graph(request.graph), load_external_data=False)
    require_architectures(canonical, sm)
    log = BuildLog()
    logger = make_logger(trt, log)
    build = partial(_build, trt, logger, log, bundle, request, progress)
    bodies = attention_bodies(request.graph, dtype, capacity, config)
    if request.graph != "vision" and request.options.cached_attention == "plugin":
        bodies = ("plugin",)
    body, compiled = _first_with_kernels(bodies, build)
    by_codes = products_by_codes(log.engine_layers)
    quantized_notes, expanded = told(canonical, by_codes, request.options.target, {})
    return EngineFacts(
        graph=request.graph,
        target=request.options.target,
        tools=library_versions(trt),
        sm=sm,
        inputs=compiled.inputs,
        outputs=compiled.outputs,
        layers=compiled.layers,
        ops=ops_of(compiled.layers, is_decomposed=body in {"decomposable", "plain"}),
        warnings=(*judged(log.warnings), *expanded),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        engine_bytes=request.output.stat().st_size,
        weights_bytes=log.weights_bytes,
        activation_bytes=tuple(log.activation_bytes),
        notes=(
            *attention_notes(request.graph, dtype, capacity, body, config, compiled.layers),
            *quantized_notes,
        ),
    )


@dataclass(frozen=True)
class _Compiled:
    """What the network of a written engine was."""

    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    layers: tuple[LayerFacts, ...]


def _first_with_kernels(
    bodies: Sequence[AttentionBody], build: Callable[[AttentionBody], _Compiled]
) -> tuple[AttentionBody, _Compiled]:
    refusals = []
    for body in bodies:
        try:
            return body, build(body)
        except NoKernelError as error:
            refusals.append(f"with the {body} attention: {error}")
    raise EngineError("\n".join(refusals))


def _build(
    trt: Bindings,
    logger: ILogger,
    log: BuildLog,
    bundle: Bundle,
    request: BuildRequest,
    progress: Progress,
    attention: AttentionBody,
) -> _Compiled:
    """One attempt, written to `request.output`; `log` then tells of this one alone."""
    log.start_anew()
    model = graph_for_parser(
        bundle.graph(request.graph),
        attention,
        request.limits.max_context,
        request.probes,
        has_plugins=request.options.target == "tensorrt",
    )
    contract = bundle.contract(request.graph)
    require_interface(model, contract, bundle.graph(request.graph))
    if any(request.gives_candidates(stages[-1].graph) for stages in bundle.rank_stages):
        add_candidates(model, bundle.config)
        contract = with_candidates(contract, bundle.config)
    weights = MappedWeights(model, bundle.directory)
    builder = trt.Builder(logger)
    network = parse_network(trt, builder, model, weights, logger, log)
    build_config = builder.create_builder_config()
    monitor = make_progress_monitor(trt, throttled(progress))  # the configuration does not keep it alive
    build_config.progress_monitor = monitor
    apply_options(trt, build_config, request.options)
    profiles = graph_profiles(request.graph, bundle.rank_config, request.limits)
    shapes = add_profiles(builder, build_config, contract, profiles)
    inputs, outputs = describe_tensors(network, shapes)
    compiled = _Compiled(inputs, outputs, describe_layers(network))
    with (
        weights.releasing_pages(),
        timing_cache(build_config, request.options.timing_cache),
        _space_is_the_users(request.output),
    ):
        write_engine(trt, builder, network, build_config, request.output, log)
    return compiled


@contextmanager
def _space_is_the_users(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise UserError(
            f"No space left in {output.parent} while writing the engine ({error.strerror}).",
            "Free some, or choose another place.",
        ) from error


def peak_rss_bytes() -> int:
    """Of this process since its start. `getrusage` would count the parent's memory at the fork."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024
