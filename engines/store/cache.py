"""Engines by key inside a bundle: found again, compared with today, and written whole.

`BUNDLE/engines/<key>/` holds `engine.json` and what was built. Reuse is by key, a hash over everything that could
change the bytes, and never because a file exists.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from engines.backends import backend_of
from engines.backends.base import Backend, Options
from engines.packages import sources_digest, tool_versions
from engines.sizing.limits import Limits
from export.errors import UserError
from export.files.directory_swap import DirectoryKind, replacing_directory, settle_leftovers, unfinished
from export.records.engine_record import (
    ENGINES_DIRECTORY,
    RECORD_NAME,
    EngineRecord,
    engine_records,
    read_engine_record,
)
from export.records.manifest import content_key


@dataclass(frozen=True)
class EngineRequest:
    """What the user wants built."""

    backend: Backend
    limits: Limits
    sms: tuple[int, ...] = ()
    """Architectures, compute capability x 10; none for a backend without them."""
    options: Options = field(default_factory=dict)
    """The backend's own, by name; checked when the request is made."""

    def __post_init__(self) -> None:
        self.backend.check_options(self.sms, self.options)


def key_inputs(bundle_key: str, request: EngineRequest) -> dict[str, str]:
    """Everything that could change an engine's bytes, by name.

    `bundle_key` covers graphs and weights. Options that only change how long a build takes are left out.
    """
    backend = request.backend
    return {
        "bundle": bundle_key,
        "target": backend.name,
        "sm": ",".join(map(str, request.sms)),
        "code": sources_digest(backend.sources),
        **{f"limit {name}": str(value) for name, value in asdict(request.limits).items()},
        **{
            f"option {name}": value
            for name, value in backend.key_options(request.sms, request.options).items()
        },
        **tool_versions(backend.distributions),
    }


def graphs_key_inputs(bundle_key: str, backend: Backend) -> dict[str, str]:
    """Everything that could change what a bundle's graphs compute where a backend opens them as they are, by name."""
    return {
        "bundle": bundle_key,
        "target": backend.name,
        "code": sources_digest(backend.sources),
        **tool_versions(backend.distributions),
    }


def engines_directory(bundle: Path) -> Path:
    return bundle / ENGINES_DIRECTORY


def cached_engine(bundle: Path, key: str) -> EngineRecord | None:
    """The engine of this key, if it is there, its record is of this key, and its files have their recorded sizes."""
    try:
        record = read_engine_record(engines_directory(bundle) / key)
    except UserError:
        return None
    return None if objections(engines_directory(bundle) / key, record) else record


def objections(directory: Path, record: EngineRecord, *, read: bool = False) -> list[str]:
    """Why what stands under an engine's key is not that engine; with `read` every byte of its files is looked at."""
    found = [] if record.key == directory.name else ["another key inside"]
    return [*found, *record.contradictions(), *record.changed_files(directory, read=read)]


def reason_to_build(bundle: Path, inputs: Mapping[str, str]) -> str | None:
    """Why an engine with these inputs must be built, compared with the likest one there is; None if it is there."""
    key = content_key(inputs)
    if cached_engine(bundle, key):
        return None
    directory = engines_directory(bundle) / key
    if directory.exists():
        try:
            return "; ".join(objections(directory, read_engine_record(directory)))
        except UserError as error:
            return str(error)
    records = [record for record in engine_records(bundle).values() if isinstance(record, EngineRecord)]
    same_target = [record for record in records if record.target == inputs["target"]]
    differences = [_differences(record.inputs, inputs) for record in same_target]
    if not differences:
        return f"no engine for {inputs['target']} yet"
    nearest = min(differences, key=len)
    return "; ".join(nearest)


@dataclass(frozen=True)
class Freshness:
    """Whether the very same request would give the same engine today."""

    stale: tuple[str, ...]
    """Why it would be built anew; empty for an engine that is up to date as far as can be seen."""
    unknown: tuple[str, ...]
    """What cannot be judged on this machine, which lacks the library."""


def freshness(directory: Path, record: EngineRecord, bundle_key: str) -> Freshness:
    """Compare an engine with its files, its bundle, our code and the libraries that are here.

    Args:
        directory: the engine's.
        record: what it says about itself.
        bundle_key: key of the bundle as it is now.
    """
    backend = backend_of(record.target)
    here = tool_versions(backend.distributions)
    absent = sorted(set(backend.distributions) & record.inputs.keys() - here.keys())
    today = {
        **{name: value for name, value in record.inputs.items() if name not in backend.distributions},
        "bundle": bundle_key,
        "code": sources_digest(backend.sources),
        **here,
    }
    built = {name: value for name, value in record.inputs.items() if name not in absent}
    return Freshness(
        (*objections(directory, record), *_differences(built, today)),
        tuple(f"{name} {record.inputs[name]} is not installed here" for name in absent),
    )


def _differences(built: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    return [
        f"{name}: built {built.get(name, 'without')}, wanted {wanted.get(name, 'without')}"
        for name in sorted({*built, *wanted})
        if built.get(name) != wanted.get(name)
    ]


@contextmanager
def writing_engine(bundle: Path, key: str, *, rebuild: bool = False) -> Iterator[Path | None]:
    """Give a directory to fill, which becomes the engine of `key` when the body ends well, else nothing changes.

    Gives None where another process built this very engine while we waited for its lock, unless it is to be built anew.

    Raises:
        UserError: no space or no permission, or the bundle was replaced meanwhile.
    """
    engines = engines_directory(bundle)
    with _locked(engines, key):
        if not rebuild and cached_engine(bundle, key):
            yield None
            return
        for name in unfinished(engines):  # of other keys as well: a killed build may have left gigabytes
            settle_leftovers(engines / name, _ENGINE)
        scratch: Path | None = None
        try:
            with replacing_directory(engines / key, _ENGINE) as scratch:
                yield scratch
        except FileNotFoundError as error:
            if scratch is not None and scratch.exists():
                raise
            raise UserError(
                f"{bundle} was exported anew while its engine was built.", "Build it again."
            ) from error


_ENGINE = DirectoryKind(
    "an engine",
    is_one=lambda _directory: True,  # a name that is a key is ours
    space_advice="Free some: `qv-export build --plan` says how much is needed",
    is_leftover=lambda directory: (directory / RECORD_NAME).is_file(),
)


@contextmanager
def _locked(engines: Path, key: str) -> Iterator[None]:
    """Let one process at a time build an engine; the kernel drops the lock of a killed one."""
    if engines.is_symlink():
        raise UserError(
            f"{engines} is a link: engines are built into the bundle itself, never into another directory.",
            "Remove the link, or copy the bundle with `cp -rL`.",
        )
    path = engines / f".{key}.lock"
    lock = -1
    try:
        while True:
            engines.mkdir(exist_ok=True)
            # Another process may remove the lock meanwhile, and `engines` if it built nothing.
            with suppress(FileNotFoundError):
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
                fcntl.flock(lock, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(lock), path.stat()):
                    break
            if lock >= 0:
                os.close(lock)
                lock = -1
    except OSError as error:
        raise UserError(
            f"{engines} cannot be written ({error.strerror}): engines are kept inside the bundle. "
            "Check its owner, mode and free space, or copy the bundle elsewhere."
        ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)
        with suppress(OSError):
            engines.rmdir()  # only if nothing was built
