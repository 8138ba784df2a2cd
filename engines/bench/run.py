"""A whole benchmark of a bundle: opens its engine, measures section by section, and says what else the machine did."""

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from engines.backends.ceilings import Ceiling
from engines.bench import graphs
from engines.bench.graphs import Bench
from engines.bench.memory import device_bytes, memory, resident_bytes
from engines.bench.report import VERSION, BenchReport, BenchRow, BenchSubject, LeftOut
from engines.bench.sampling import Effort
from engines.bench.sections import SECTIONS
from engines.bench.serving import Load, serving
from engines.machine import Machine
from engines.open import Choice, open_chosen
from engines.runtime.scheduler import Scheduler
from engines.runtime.service import SchedulerService
from engines.serving.settings import ServerSettings
from engines.session import Engine
from engines.sizing.limits import Limits
from export.bundle import Bundle
from export.dtypes import num_bytes
from export.errors import UserError

BenchProgress = Callable[[str, float], None]
"""Told what is measured now, and the fraction of the sections that is done."""

DEFAULT_NEW_TOKENS = 32
GRAPHS = "the graphs themselves"
_QUESTION_TOKENS = 256
"""Room for the longest question of `engines.bench.questions`, its picture and the chat template."""
_GRAPH_SECTIONS = {
    "preprocessing": graphs.preprocessing,
    "vision": graphs.vision,
    "prefill": graphs.prefill_speed,
    "decode": graphs.decode,
}


@dataclass(frozen=True)
class Wishes:
    """What a user wants measured."""

    sections: tuple[str, ...] = SECTIONS
    effort: Effort = field(default_factory=Effort)
    num_clients: tuple[int, ...] = ()
    """Of serving; none: one, and as many as there are slots."""
    num_new_tokens: int = DEFAULT_NEW_TOKENS
    """Of each answer of serving."""


def subject_of(bundle: Bundle, chosen: Choice, settings: ServerSettings, machine: Machine) -> BenchSubject:
    """What would be measured, and where."""
    return BenchSubject(
        cpu=_cpu_model(),
        num_cores=len(os.sched_getaffinity(0)),
        gpus=tuple(f"{gpu.name}, driver {gpu.driver}" for gpu in machine.gpus),
        target=chosen.backend.name,
        library=machine.versions.get(chosen.backend.name) or "unknown",
        engine=GRAPHS if chosen.record is None else chosen.key,
        bundle=bundle.manifest.key,
        num_slots=settings.num_slots,
        capacity=settings.capacity,
        num_threads=settings.num_threads,
        num_ranks=settings.num_ranks,
    )


def measure_engine(
    bundle: Bundle,
    chosen: Choice,
    settings: ServerSettings,
    subject: BenchSubject,
    wishes: Wishes,
    progress: BenchProgress,
) -> BenchReport:
    """Measure an engine of a bundle.

    Args:
        bundle: opened.
        chosen: what computes.
        settings: slots, context, threads and the scheduler's bounds.
        subject: as `subject_of` gave it.
        wishes: what to measure, and for how long.
        progress: told of each section.

    Raises:
        UserError: wishes that this engine cannot follow, or an engine that this machine cannot load.
        EngineError: the engine fails.
    """
    clients = wishes.num_clients or tuple(sorted({1, settings.num_slots}))
    if "serving" in wishes.sections:
        _require_served(clients, wishes.num_new_tokens, settings)
    load_before = os.getloadavg()[0]
    device_before = device_bytes(chosen.backend.device)
    progress("opening the engine", 0.0)
    engine = open_chosen(
        bundle,
        chosen,
        num_slots=settings.num_slots,
        capacity=settings.capacity,
        num_threads=settings.num_threads,
        num_ranks=settings.num_ranks,
        hostfile=settings.hostfile,
    )
    with closing(engine):
        loaded_bytes = resident_bytes()
        progress("what this machine can reach", 0.0)
        ceilings = chosen.backend.ceilings(bundle.manifest.dtype, settings.num_threads)
        bench = _bench(bundle, chosen, settings, engine, wishes.effort, ceilings)
        found: list[BenchRow | LeftOut] = []
        for number, section in enumerate(wishes.sections):
            progress(section, number / len(wishes.sections))
            if section in _GRAPH_SECTIONS:
                found += _GRAPH_SECTIONS[section](bench)
            elif section == "serving":
                found += _serve(bench, settings, Load(clients, wishes.num_new_tokens))
            else:
                found += memory(chosen.backend.device, loaded_bytes, device_before)
    return BenchReport(
        version=VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        qv_export=version("qv-export"),
        subject=subject,
        sections=tuple(wishes.sections),
        load_before=round(load_before, 2),
        load_after=round(os.getloadavg()[0], 2),
        ceilings=bench.ceilings,
        rows=tuple(one for one in found if isinstance(one, BenchRow)),
        left_out=tuple(one for one in found if isinstance(one, LeftOut)),
    )


def _require_served(clients: Sequence[int], num_new_tokens: int, settings: ServerSettings) -> None:
    problems = []
    if max(clients) > settings.max_requests:
        problems.append(
            f"{max(clients)} clients are more than the {settings.num_slots} slots and {settings.scheduler.max_queue} "
            "places of the queue"
        )
    if num_new_tokens + _QUESTION_TOKENS > settings.capacity:
        problems.append(
            f"answers of {num_new_tokens} tokens behind questions of up to {_QUESTION_TOKENS} do not fit into a "
            f"context of {settings.capacity}"
        )
    if problems:
        raise UserError("Serving cannot be measured so:\n- " + "\n- ".join(problems))


def _bench(
    bundle: Bundle,
    chosen: Choice,
    settings: ServerSettings,
    engine: Engine,
    effort: Effort,
    ceilings: tuple[Ceiling, ...],
) -> Bench:
    built_for = chosen.record.limits if chosen.record else {}
    capacity = graphs.usable_tokens(engine.decoder, settings.capacity)
    computed_in = chosen.backend.compute_dtypes(bundle.manifest.dtype)[0]
    return Bench(
        bundle=bundle,
        engine=engine,
        num_slots=settings.num_slots,
        capacity=capacity,
        max_patches=built_for.get("max_patches", Limits.max_patches),
        max_prompt_tokens=min(built_for.get("max_prompt_tokens", capacity), capacity),
        value_bytes=num_bytes(computed_in, 1),
        ceilings=ceilings,
        effort=effort,
    )


def _serve(bench: Bench, settings: ServerSettings, load: Load) -> Iterator[BenchRow]:
    scheduler = Scheduler(bench.engine.vision, bench.engine.decoder, bench.bundle.config, settings.scheduler)
    with SchedulerService(scheduler) as service:
        yield from serving(service, bench.bundle.processor, load)


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
