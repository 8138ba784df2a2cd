"""A bundle becomes engines, unless they are there."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

from engines.backends.base import require_kv_cache
from engines.gpus import GpuFacts
from engines.store.cache import EngineRequest, cached_engine, key_inputs, writing_engine
from export.bundle import Bundle
from export.contract import GraphName
from export.errors import UserError
from export.records.engine_record import RECORD_NAME, EngineRecord
from export.records.manifest import FileRecord, content_key
from plugins.registry import plugins_of

Progress = Callable[[str, float], None]
"""What is going on, and the fraction of the whole that is done."""

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Built:
    """An engine in the cache."""

    directory: Path
    record: EngineRecord
    is_new: bool
    """False where there was nothing to do."""


def reusable(bundle: Bundle, request: EngineRequest) -> Built | None:
    """The engine of this very request, if it was built before."""
    key = content_key(key_inputs(bundle.manifest.key, request))
    record = cached_engine(bundle.directory, key)
    return Built(bundle.engine_directory(key), record, is_new=False) if record else None


def build_engine_directory(
    bundle: Bundle,
    request: EngineRequest,
    gpus: Sequence[GpuFacts],
    jobs: int,
    progress: Progress,
    *,
    rebuild: bool = False,
) -> Built:
    """Build both graphs of a bundle into `engines/<key>/`, unless they are there.

    Args:
        bundle: opened, so known to be as its manifest says.
        request: what to build.
        gpus: of this machine.
        jobs: graphs built at the same time; each takes its memory.
        progress: told from the threads that build.
        rebuild: build although an engine of this key is there, which takes its place.

    Raises:
        UserError: the target's library is missing, no space, no permission, limits that cannot be served.
        EngineError: the target refuses a graph.
    """
    require_kv_cache(request.backend, bundle)
    if not rebuild and (built := reusable(bundle, request)):
        return built
    inputs = key_inputs(bundle.manifest.key, request)
    key = content_key(inputs)
    if missing := request.backend.missing():
        raise UserError(missing)
    start = time.perf_counter()
    with writing_engine(bundle.directory, key, rebuild=rebuild) as scratch:
        if scratch is not None:
            facts = _build_graphs(bundle, request, scratch, jobs, progress)
            record = EngineRecord(
                key=key,
                inputs=inputs,
                target=request.backend.name,
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
    return Built(bundle.engine_directory(key), written, is_new=scratch is not None)


def _build_graphs(
    bundle: Bundle, request: EngineRequest, scratch: Path, jobs: int, progress: Progress
) -> dict[str, Facts]:
    """Every graph, as many at once as there are jobs. When one fails, the others end at their next sign of life."""
    fractions = dict.fromkeys(bundle.graph_names, 0.0)
    is_stopped = Event()

    def report(graph: GraphName, phase: str, fraction: float) -> None:
        if is_stopped.is_set():
            raise CancelledError
        fractions[graph] = fraction
        progress(f"{graph}: {phase}", sum(fractions.values()) / len(fractions))

    if jobs == 1:  # in this thread, which signals reach
        return {graph: _build_graph(bundle, graph, request, scratch, report) for graph in bundle.graph_names}
    with ThreadPoolExecutor(jobs) as pool:
        pending = {
            graph: pool.submit(_build_graph, bundle, graph, request, scratch, report)
            for graph in bundle.graph_names
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
    facts = request.backend.build(
        bundle,
        graph,
        request.limits,
        request.sms,
        request.options,
        scratch / f"{graph}.engine",
        lambda phase, fraction: report(graph, phase, fraction),
    )
    report(graph, "done", 1.0)
    return facts.to_json_object()


def _plugins(facts: Mapping[str, Facts]) -> tuple[str, ...]:
    """Plugins that the builder reported inside of the engines, as `namespace::Name/version`."""
    return tuple(
        sorted(
            plugin
            for graph in facts.values()
            for op, implementation in graph["ops"].items()
            if implementation == "plugin"
            for plugin in plugins_of(op)
        )
    )
