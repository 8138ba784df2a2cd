"""Compiles one graph of a bundle into one engine file, in the building process (`worker.py` beside this file)."""

import errno
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.backends.facts import EngineFacts
from engines.backends.tensorrt.build.configuration import (
    add_profiles,
    apply_options,
    timing_cache,
    write_engine,
)
from engines.backends.tensorrt.build.judged_warnings import judged
from engines.backends.tensorrt.build.network import MappedWeights, load_graph, parse_network
from engines.backends.tensorrt.build.profiles import graph_contract, graph_profiles, require_small_padding
from engines.backends.tensorrt.build.registration import register_plugins
from engines.backends.tensorrt.description import describe_layers, describe_tensors, ops_of
from engines.backends.tensorrt.flavour import load_bindings, tool_versions
from engines.backends.tensorrt.log import BuildLog, Progress, make_logger, make_progress_monitor, throttled
from engines.backends.tensorrt.options import BuildRequest
from export.bundle import open_bundle
from export.errors import UserError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def compile_engine(request: BuildRequest, progress: Progress) -> EngineFacts:
    """Build, write the engine to `request.output`, and say what was built.

    Raises:
        UserError: the flavour is not installed, limits or architectures that it cannot serve, no space for the engine.
        EngineError: TensorRT refuses the graph; its own words are quoted.
    """
    started = time.perf_counter()
    trt, sm = load_bindings(request.options.flavour), request.options.sm
    if request.options.flavour == "tensorrt":
        sm = register_plugins(request.options)
    bundle = open_bundle(request.bundle)
    config = bundle.config
    if request.graph == "vision" and request.options.flavour == "tensorrt-rtx":
        require_small_padding(config, request.limits)
    contract = graph_contract(request.graph, config, bundle.manifest.dtype)
    profiles = graph_profiles(request.graph, config, request.limits)
    model = load_graph(
        bundle.graph(request.graph),
        bundle.manifest.dtype,
        request.limits.max_context,
        request.probes,
        has_plugins=request.options.flavour == "tensorrt",
    )
    weights = MappedWeights(model, bundle.directory)

    log = BuildLog()
    logger = make_logger(trt, log)
    builder = trt.Builder(logger)
    network = parse_network(trt, builder, model, weights, logger, log)
    build_config = builder.create_builder_config()
    monitor = make_progress_monitor(trt, throttled(progress))  # the configuration does not keep it alive
    build_config.progress_monitor = monitor
    apply_options(trt, build_config, request.options)
    shapes = add_profiles(builder, build_config, contract, profiles)
    inputs, outputs = describe_tensors(network, shapes)
    layers = describe_layers(network)
    with (
        weights.releasing_pages(),
        timing_cache(build_config, request.options.timing_cache),
        _space_is_the_users(request.output),
    ):
        write_engine(trt, builder, network, build_config, request.output, log)
    return EngineFacts(
        graph=request.graph,
        target=request.options.flavour,
        tools=tool_versions(trt),
        sm=sm,
        inputs=inputs,
        outputs=outputs,
        layers=layers,
        ops=ops_of(layers),
        warnings=judged(log.warnings),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        engine_bytes=request.output.stat().st_size,
        weights_bytes=log.weights_bytes,
        activation_bytes=tuple(log.activation_bytes),
    )


@contextmanager
def _space_is_the_users(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise UserError(
            f"No space left in {output.parent} while writing the engine ({error.strerror}). Free some, or choose "
            "another place."
        ) from error


def peak_rss_bytes() -> int:
    """Of this process since its start. `getrusage` would count the parent's memory at the fork."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024
