"""Kernels that TensorRT-RTX compiled on this machine's GPU, kept from one process to the next.

RTX generates kernels when a context first needs them, which takes seconds to tens of seconds a process. Its runtime
cache holds them; it lies in the user's cache directory, since an engine's own directory is listed and digested. RTX
refuses a cache of another version, GPU or driver by itself. Without a cache everything works as with one, later: so
whatever is wrong with the file is a warning.
"""

import logging
import os
import stat
import weakref
from pathlib import Path
from typing import Any, cast

from engines.backends.tensorrt.api import Bindings, ICudaEngine, IExecutionContext, RtxEngine
from engines.backends.tensorrt.log import RUN_LOG
from engines.backends.tensorrt.run.cuda import StreamDevice
from export.errors import UserError
from export.files.atomic import replacing_file
from export.files.untrusted import read_own_bytes

_LOGGER = logging.getLogger(__name__)

MAX_FILE_BYTES = 256 << 20
"""Of one engine's kernels; what is larger is neither read nor written."""
MAX_DIRECTORY_BYTES = 1 << 30
"""Of all engines' kernels: the files written longest ago go first."""

_SUFFIX = ".cache"
_FAILURES = (OSError, RuntimeError, UserError)
"""Of the file system, of a user without a home, of RTX and CUDA, and of a file that is not to be believed."""


def cache_path(key: str, graph: str, sm: int, version: str) -> Path:
    """Where the kernels of one engine for one architecture are kept.

    Args:
        key: of the engine's record.
        graph: that it was built from.
        sm: compute capability x 10.
        version: of TensorRT-RTX.

    Raises:
        RuntimeError: the user has no home.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # a relative one is to be ignored (XDG Base Directory Specification)
        base = Path.home() / ".cache"
    return base / "qv-export" / "rtx" / f"{key}-{graph}-sm{sm}-{version}{_SUFFIX}"


def with_runtime_cache(
    trt: Bindings, engine: ICudaEngine, device: StreamDevice, key: str, graph: str, sm: int
) -> ICudaEngine:
    """The same engine of TensorRT-RTX, whose contexts take their kernels from a file and leave new ones there.

    Written by `keep_compiled`, and when the engine and all of its executions are gone or the process ends.

    Args:
        trt: the library.
        engine: loaded.
        device: it is loaded on.
        key, graph, sm: as `cache_path`.
    """
    rtx = cast(RtxEngine, engine)
    try:
        kernels = _Kernels(rtx, device, cache_path(key, graph, sm, trt.__version__))
    except _FAILURES as error:
        _warn("Kernels are not kept for the next start", error)
        return engine
    return cast(ICudaEngine, _CachedEngine(rtx, kernels))


class _Kernels:
    """A runtime cache and its file."""

    def __init__(self, engine: RtxEngine, device: StreamDevice, path: Path) -> None:
        self._engine = engine  # which made the configuration, so it goes last
        self._device, self._path = device, path
        self.config = engine.create_runtime_config()
        self._cache = self.config.create_runtime_cache()
        if not self.config.set_runtime_cache(self._cache):
            raise RuntimeError(f"TensorRT-RTX takes no runtime cache: {RUN_LOG.take()}")
        self._num_bytes = 0
        try:
            self._load()
        except FileNotFoundError:
            _LOGGER.info("The first start with this engine compiles kernels on the GPU: %s", path)
        except _FAILURES as error:
            _LOGGER.warning(
                "Kernels are compiled anew, since those of the last start cannot be used: %s", error
            )

    def _load(self) -> None:
        self._device.select()
        _require_private(self._path)
        blob = read_own_bytes(self._path, MAX_FILE_BYTES)
        if not self._cache.deserialize(blob):
            raise RuntimeError(f"{self._path} is of another GPU, driver or version: {RUN_LOG.take()}")
        self._num_bytes = len(blob)

    def keep(self) -> None:
        """Write the file if there are more kernels than it has."""
        try:
            self._device.select()
            blob = bytes(self._cache.serialize())
            if len(blob) > self._num_bytes:
                self._num_bytes = len(blob)  # once, though it fail
                self._write(blob)
        except _FAILURES as error:
            _warn("Kernels are not kept for the next start", error)

    def _write(self, blob: bytes) -> None:
        if len(blob) > MAX_FILE_BYTES:
            raise UserError(f"they have {len(blob):,} bytes, of {MAX_FILE_BYTES:,} at most.")
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_room(self._path, len(blob))
        with replacing_file(self._path) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(blob)


class _CachedEngine:
    """An `ICudaEngine` that makes its contexts with a runtime cache, and is the wrapped one in all else."""

    def __init__(self, engine: RtxEngine, kernels: _Kernels) -> None:
        self._engine, self._config = engine, kernels.config
        self.keep_compiled = kernels.keep
        # At the process's end these run from the last made to the first: before the device's own.
        weakref.finalize(self, kernels.keep)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def create_execution_context(self, strategy: Any) -> IExecutionContext | None:
        self._config.set_execution_context_allocation_strategy(strategy)
        return self._engine.create_execution_context(self._config)


def _warn(what: str, error: Exception) -> None:
    # Its words alone: a handler that keeps the error keeps its frames, and in them the engine.
    _LOGGER.warning("%s: %s", what, str(error))


def _require_private(path: Path) -> None:
    """What is loaded runs on the GPU, so it must be nobody else's to write."""
    for one in (path.parent, path):
        found = one.stat()
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UserError(
                f"{one} belongs to another user, or others can write it.",
                f"Remove it, or: chmod go-w {one}",
            )


def _make_room(path: Path, num_bytes: int) -> None:
    """Remove the files written longest ago until one more fits."""
    others = [other for other in path.parent.glob(f"*{_SUFFIX}") if other != path]
    facts = sorted(((other.lstat(), other) for other in others), key=lambda pair: pair[0].st_mtime)
    taken = num_bytes + sum(found.st_size for found, _ in facts)
    for found, other in facts:
        if taken <= MAX_DIRECTORY_BYTES:
            return
        other.unlink(missing_ok=True)
        taken -= found.st_size
