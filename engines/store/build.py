"""How does a bundle become engines, and when is there nothing to do?"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

from engines.backends.facts import GRAPH_NAMES, GraphName
from engines.gpus import GpuFacts
from engines.store.cache import EngineRequest, cached_engine, engines_directory, key_inputs, writing_engine
from engines.targets import TargetName, require_target, serves_sm
from export.bundle import Bundle
from export.engine_record import RECORD_NAME, EngineRecord
from export.errors import UserError
from export.manifest import FileRecord, content_key
from plugins.registry import SIGNATURES

Progress = Callable[[str, float], None]
"""What is going on, and the fraction of the whole that is done."""

Facts = Mapping[str, Any]

DEFAULT_RTX_SMS = (80, 86, 89, 120)
"""Without `--sm` and without a GPU here. A further architecture costs next to nothing: it adds kernels, no weights."""


@dataclass(frozen=True)
class Built:
    """An engine in the cache."""

    directory: Path
    record: EngineRecord
    is_new: bool
    """False where there was nothing to do."""


def resolve_sms(target: TargetName, asked: Sequence[int], gpus: Sequence[GpuFacts]) -> tuple[int, ...]:
    """The architectures to build for, ascending.

    Args:
        target: the target.
        asked: what the user gave; empty: those of this machine's GPUs, or for TensorRT-RTX without any,
            `DEFAULT_RTX_SMS`.
        gpus: of this machine.

    Raises:
        UserError: what was asked has no meaning for the target, or cannot be built here. Whether the target serves an
            architecture at all is the check of `BuildOptions`.
    """
    wanted = tuple(sorted(set(asked)))
    if target == "onnxruntime":
        if wanted:
            raise UserError("--sm is for TensorRT: ONNX Runtime compiles when it loads. Leave it out.")
        return ()
    served = tuple(sorted({gpu.sm for gpu in gpus if serves_sm(target, gpu.sm)}))
    if target == "tensorrt-rtx":
        return wanted or served or DEFAULT_RTX_SMS
    if not served:
        raise UserError(
            "--target tensorrt builds on an NVIDIA GPU of SM80 or newer, which `nvidia-smi` does not list here. "
            "Build where the GPU is, or use --target tensorrt-rtx, which builds on any CPU."
        )
    if wanted and wanted != served[:1]:
        raise UserError(
            f"--target tensorrt builds for the GPU that it runs on: found SM{served[0]} here, asked was "
            f"{', '.join(f'SM{sm}' for sm in wanted)}. Leave --sm out, or build on such a machine."
        )
    return served[:1]


def reusable(bundle: Bundle, request: EngineRequest) -> Built | None:
    """The engine of this very request, if it was built before."""
    key = content_key(key_inputs(bundle.manifest.key, request))
    record = cached_engine(bundle.directory, key)
    return Built(engines_directory(bundle.directory) / key, record, is_new=False) if record else None


def build_engine_directory(
    bundle: Bundle, request: EngineRequest, gpus: Sequence[GpuFacts], jobs: int, progress: Progress
) -> Built:
    """Build both graphs of a bundle into `engines/<key>/`, unless they are there.

    Args:
        bundle: opened, so known to be as its manifest says.
        request: what to build.
        gpus: of this machine.
        jobs: graphs built at the same time; each takes its memory.
        progress: told from the threads that build.

    Raises:
        UserError: the target's library is missing, no space, no permission, limits that cannot be served.
        EngineError: the target refuses a graph.
    """
    if built := reusable(bundle, request):
        return built
    inputs = key_inputs(bundle.manifest.key, request)
    key = content_key(inputs)
    require_target(request.target)
    start = time.perf_counter()
    with writing_engine(bundle.directory, key) as scratch:
        if scratch is not None:
            facts = _build_graphs(bundle, request, scratch, jobs, progress)
            record = EngineRecord(
                key=key,
                inputs=inputs,
                target=request.target,
                sms=request.sms,
                limits=asdict(request.limits),
                plugins=_plugins(facts),
                driver=gpus[0].driver if gpus else None,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=round(time.perf_counter() - start, 3),
                files=tuple(FileRecord.from_file(path) for path in sorted(scratch.glob("*.engine"))),
                facts=facts,
            )
            (scratch / RECORD_NAME).write_text(record.to_json(), encoding="utf-8")
    # By the key from before: whoever edits this code meanwhile has a new key now.
    written = cached_engine(bundle.directory, key)
    assert written is not None, key
    return Built(engines_directory(bundle.directory) / key, written, is_new=scratch is not None)


def _build_graphs(
    bundle: Bundle, request: EngineRequest, scratch: Path, jobs: int, progress: Progress
) -> dict[str, Facts]:
    """Both graphs, as many at once as there are jobs. When one fails, the other ends at its next sign of life."""
    fractions = dict.fromkeys(GRAPH_NAMES, 0.0)
    is_stopped = Event()

    def report(graph: GraphName, phase: str, fraction: float) -> None:
        if is_stopped.is_set():
            raise CancelledError
        fractions[graph] = fraction
        progress(f"{graph}: {phase}", sum(fractions.values()) / len(fractions))

    if jobs == 1:  # in this thread, which signals reach
        return {graph: _build_graph(bundle, graph, request, scratch, report) for graph in GRAPH_NAMES}
    with ThreadPoolExecutor(jobs) as pool:
        pending = {
            graph: pool.submit(_build_graph, bundle, graph, request, scratch, report) for graph in GRAPH_NAMES
        }
        try:
            return {graph: future.result() for graph, future in pending.items()}
        finally:
            is_stopped.set()


def _build_graph(
    bundle: Bundle,
    graph: GraphName,
    request: EngineRequest,
    scratch: Path,
    report: Callable[[GraphName, str, float], None],
) -> Facts:
    report(graph, "starting", 0.0)
    if request.options is None:
        from engines.backends.onnxruntime.facts import graph_facts  # noqa: PLC0415 - heavy, and idle where the engine is there

        facts: Facts = graph_facts(bundle, graph, request.limits)
    else:
        from engines.backends.tensorrt.build.builder import build_engine  # noqa: PLC0415 - likewise

        output = scratch / f"{graph}.engine"
        facts = build_engine(
            bundle,
            graph,
            request.limits,
            request.options,
            output,
            lambda phase, fraction: report(graph, phase, fraction),
        ).to_json_object()
    report(graph, "done", 1.0)
    return facts


def _plugins(facts: Mapping[str, Facts]) -> tuple[str, ...]:
    """Plugins that the builder reported inside of the engines, as `namespace::Name/version`."""
    names = {
        op
        for graph in facts.values()
        for op, implementation in graph["ops"].items()
        if implementation == "plugin"
    }
    return tuple(plugin for plugin in known_plugins() if plugin.partition("::")[2].partition("/")[0] in names)


def known_plugins() -> tuple[str, ...]:
    """Every plugin that this qv-export makes."""
    return tuple(
        f"{signature.attributes['plugin_namespace']}::{signature.name}/{signature.attributes['plugin_version']}"
        for signature in SIGNATURES
        if signature.attributes
    )
