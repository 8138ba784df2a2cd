"""The one opener: which engine of a bundle answers, by one rule for every command, and its sessions."""

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

from engines.backends import BACKENDS, backend_of, default_backend
from engines.backends.base import Backend, require_kv_cache
from engines.backends.known_issues import KnownIssue, Situation
from engines.machine import Machine
from engines.session import Engine
from engines.store.cache import graphs_key_inputs, objections
from engines.store.compatibility import load_problems, rebuild_command, require_loadable, this_machine
from export.bundle import Bundle
from export.errors import UserError
from export.records.engine_record import EngineRecord, read_engine_record
from export.records.manifest import content_key
from export.wording import command_line
from plugins.registry import known_plugins

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What will answer: a backend, and the engine that it loads, if it needs one."""

    backend: Backend
    record: EngineRecord | None
    """None where the backend opens the graphs themselves."""
    key: str
    """Of the engine, or of the graphs as this backend opens them: what a verdict belongs to."""


def open_engine(
    bundle: Bundle, choice: str | None, *, num_slots: int, capacity: int, num_threads: int | None = None
) -> Engine:
    """Open what answers.

    Args:
        bundle: opened.
        choice: a backend's name, an engine's key, or None for the default backend; see `choose_engine`.
        num_slots: KV slots.
        capacity: tokens that a slot must hold; an engine may have room for more.
        num_threads: CPU threads of each graph; None takes every core.

    Raises:
        UserError: no engine that this machine can load and that is large enough, and how to build one.
        EngineError: the backend's library refuses what it is given.
    """
    chosen = choose_engine(bundle, choice, num_slots=num_slots, capacity=capacity, machine=this_machine())
    return open_chosen(bundle, chosen, num_slots=num_slots, capacity=capacity, num_threads=num_threads)


def open_chosen(
    bundle: Bundle,
    chosen: Choice,
    *,
    num_slots: int,
    capacity: int,
    num_threads: int | None = None,
    device: str | None = None,
    num_ranks: int | None = None,
    hostfile: str | None = None,
) -> Engine:
    """Open what was chosen before; whoever opens it closes it.

    Args:
        bundle, num_slots, capacity, num_threads: as `open_engine`; threads of each rank, where there are ranks.
        chosen: what computes.
        device: which GPU, such as `cuda:1`.
        num_ranks: processes that compute together; None: this one alone.
        hostfile: their machines; None: this one, or those that Slurm gave.

    Raises:
        UserError, EngineError: as `open_engine`; fewer ranks than the bundle has stages, or MPI is not installed.
        EngineLostError: the ranks do not start.
    """
    if missing := chosen.backend.missing():
        raise UserError(missing)
    if chosen.record is not None:
        for issue in known_issues_of(chosen.record, bundle.manifest.dtype):
            _LOGGER.warning(issue.sentence())
        _require_whole(bundle, chosen.record)
    if num_ranks is None and hostfile is not None:
        raise UserError("--hostfile names the machines of --ranks.", "Give that too, or leave it out.")
    if num_ranks is not None:
        if device is not None:
            raise UserError(f"--device {device} is one GPU, and each of --ranks {num_ranks} takes its own.")
        return _open_ranks(bundle, chosen, num_slots, capacity, num_threads, num_ranks, hostfile)
    return chosen.backend.open(
        bundle,
        chosen.record,
        num_slots=num_slots,
        capacity=capacity,
        num_threads=num_threads,
        # Told only where it was asked for: most backends have one place to compute.
        **({} if device is None else {"device": device}),
    )


def _open_ranks(
    bundle: Bundle,
    chosen: Choice,
    num_slots: int,
    capacity: int,
    num_threads: int | None,
    num_ranks: int,
    hostfile: str | None,
) -> Engine:
    # Only here, since hardly anybody asks for ranks.
    from engines.ranks.layout import layout_of  # noqa: PLC0415
    from engines.ranks.messages import Start  # noqa: PLC0415
    from engines.ranks.sessions import open_ranks  # noqa: PLC0415

    start = Start(
        bundle.directory.absolute(),
        chosen.backend.name,
        None if chosen.record is None else chosen.record.key,
        layout_of(num_ranks, len(bundle.stages), bundle.manifest.tensor_parallel),
        num_slots,
        capacity,
        num_threads,
    )
    return open_ranks(start, None if hostfile is None else Path(hostfile))


def choose_engine(
    bundle: Bundle, choice: str | None, *, num_slots: int, capacity: int, machine: Machine
) -> Choice:
    """The engine that answers: one rule for every command.

    A key means that very engine. A backend's name means the graphs themselves where the backend opens them, else of its
    engines that fit the one with the least cache for what is asked. None means the default backend.

    Raises:
        UserError: none fits; what is wrong with each, and how to build one.
    """
    if choice is not None and choice not in BACKENDS:
        return _engine_of_key(bundle, choice, num_slots, capacity, machine)
    backend = default_backend() if choice is None else BACKENDS[choice]
    require_kv_cache(backend, bundle)
    if not backend.needs_engine:
        return _graphs(bundle, backend)
    record = _smallest_that_fits(bundle, backend, num_slots, capacity, machine)
    return Choice(backend, record, record.key)


def _graphs(bundle: Bundle, backend: Backend) -> Choice:
    return Choice(backend, None, content_key(graphs_key_inputs(bundle.manifest.key, backend)))


def choice_to_serve(bundle: Bundle, key: str | None) -> Choice:
    """What a server will open, which may run on another machine: an engine by its key, or None for the default backend.

    Raises:
        UserError: there is no whole engine of that key.
    """
    if key is None:
        return _graphs(bundle, default_backend())
    record = find_engine(bundle, key)
    return Choice(backend_of(record.target), record, record.key)


def find_engine(bundle: Bundle, key: str) -> EngineRecord:
    """The whole engine of a key.

    Raises:
        UserError: there is none; or its files are not what was recorded.
    """
    directory = bundle.engine_directory(key)
    try:
        record = read_engine_record(directory)
        problems = objections(directory, record)
    except UserError as error:
        problems = [error.message.removesuffix(".")]
    if problems:
        raise UserError(
            f"{bundle.directory} has no whole engine {key}: {'; '.join(problems)}.",
            f"`{command_line('inspect', bundle.directory)}` lists what it has, and `qv-export build` makes one.",
        )
    if record.target not in BACKENDS:
        raise UserError(
            f"The engine {key} was built for {record.target!r}, which this qv-export does not know.",
            f"Known are {', '.join(BACKENDS)}. Use the qv-export version that built it, or build another.",
        )
    return record


def known_issues_of(record: EngineRecord, dtype: str) -> list[KnownIssue]:
    """What is known to go wrong with an engine, in the version that it was built with, which must be the one here."""
    backend = BACKENDS[record.target]
    versions = [record.inputs[name] for name in backend.distributions if name in record.inputs]
    situation = Situation(
        version=next(iter(versions), "0"),
        sms=record.sms,
        limits=record.limits,
        dtype=dtype,
        has_plugins=bool(record.plugins),
    )
    return backend.known_issues(situation)


def _engine_of_key(bundle: Bundle, key: str, num_slots: int, capacity: int, machine: Machine) -> Choice:
    record = find_engine(bundle, key)
    backend = BACKENDS[record.target]
    require_loadable(record, bundle.directory, bundle.manifest.key, machine, known_plugins())
    if too_small := _too_small(record, num_slots, capacity) if backend.needs_engine else []:
        raise UserError(f"The engine {key} is too small:\n- " + "\n- ".join(too_small))
    return Choice(backend, record, record.key) if backend.needs_engine else _graphs(bundle, backend)


def _smallest_that_fits(
    bundle: Bundle, backend: Backend, num_slots: int, capacity: int, machine: Machine
) -> EngineRecord:
    records = [record for record in bundle.engines() if record.target == backend.name]
    command = (
        f"qv-export build {shlex.quote(str(bundle.directory))} --target {backend.name} "
        f"--max-batch {num_slots} --max-context {capacity}"
    )
    if not records:
        raise UserError(f"{bundle.directory} has no engine for {backend.name}.", f"Build one: {command}")
    unfit = {record.key: _unfit(record, bundle, machine, num_slots, capacity) for record in records}
    fitting = [record for record in records if not unfit[record.key]]
    if fitting:
        names = ("max_context", "max_batch")
        return min(fitting, key=lambda record: (*(record.limits[name] for name in names), record.key))
    if len(records) == 1:
        require_loadable(records[0], bundle.directory, bundle.manifest.key, machine, known_plugins())
    reasons = "".join(f"\n- {key}: {'; '.join(found)}" for key, found in unfit.items())
    raise UserError(
        f"No engine for {backend.name} in {bundle.directory} fits:{reasons}\nBuild one that does: {command}"
    )


def _unfit(
    record: EngineRecord, bundle: Bundle, machine: Machine, num_slots: int, capacity: int
) -> list[str]:
    return [
        *load_problems(record, bundle.manifest.key, machine, known_plugins()),
        *objections(bundle.engine_directory(record.key), record),
        *_too_small(record, num_slots, capacity),
    ]


def _too_small(record: EngineRecord, num_slots: int, capacity: int) -> list[str]:
    asked = {"max_batch": num_slots, "max_context": capacity}
    return [
        f"its {name} is {record.limits[name]}, asked are {value}"
        for name, value in asked.items()
        if record.limits[name] < value
    ]


def _require_whole(bundle: Bundle, record: EngineRecord) -> None:
    """A broken engine may crash the process that loads it; reading all of it once costs less than loading it."""
    directory = bundle.engine_directory(record.key)
    if changed := bundle.changed_engine_files(record):
        raise UserError(
            f"The engine {directory} is damaged: {'; '.join(changed)}.",
            f"Remove that directory and build it again: "
            f"{rebuild_command(record, bundle.directory, this_machine())}",
        )
