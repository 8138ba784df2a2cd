"""Builds an engine in a child process, of which only the result reaches the caller.

One child process an engine (`engines.backends.tensorrt.build.worker`): it aborts alone, is killed by Ctrl-C, and its
peak memory is the build's own.
"""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from engines.backends.facts import EngineFacts
from engines.backends.tensorrt.library import TensorRtTarget, require_installed
from engines.backends.tensorrt.log import Progress
from engines.backends.tensorrt.options import BuildOptions, BuildRequest
from engines.session import EngineError
from engines.sizing.limits import Limits
from export.bundle import Bundle
from export.contract import GraphName
from export.errors import UserError
from plugins.child_python import module_command

__all__ = ["BuildOptions", "EngineFacts", "GraphName", "Progress", "TensorRtTarget", "build_engine"]

_SAID_BYTES = 4000  # of what a dead process left on its standard error


def build_engine(
    bundle: Bundle,
    graph: GraphName,
    limits: Limits,
    options: BuildOptions,
    output: Path,
    progress: Progress,
    *,
    probes: tuple[str, ...] = (),
) -> EngineFacts:
    """Compile one graph of a bundle and write the serialized engine to `output`, in a directory that the caller owns.

    Args:
        bundle: opened, so known to be as its manifest says.
        graph: which of its two graphs.
        limits: shapes to compile for.
        options: target, architectures and the rest.
        output: file to write; it is removed again where the build fails.
        progress: told what TensorRT does and how far it is, a few times a second.
        probes: values inside the graph that the engine shall give as further outputs, to be looked at.

    Raises:
        UserError: the target is not installed, limits that it cannot serve, no space for the engine.
        EngineError: TensorRT refuses the graph, or its process died; the message quotes what it said.
    """
    require_installed(options.target)
    request = BuildRequest(bundle.directory.resolve(), graph, limits, options, output.resolve(), probes)
    try:
        return _run_worker(request, progress)
    except BaseException:
        output.unlink(missing_ok=True)
        raise


def _run_worker(request: BuildRequest, progress: Progress) -> EngineFacts:
    phase = "starting"
    with tempfile.TemporaryFile() as said, _worker(request, said) as (process, events):
        for line in events:
            event = json.loads(line)
            if "progress" not in event:
                return _facts(event)
            phase, fraction = event["progress"]
            progress(phase, fraction)
        raise EngineError(_death(request, process.wait(), phase, said))


@contextmanager
def _worker(request: BuildRequest, said: IO[bytes]) -> Iterator[tuple[subprocess.Popen[bytes], IO[str]]]:
    """The building process and its events; it is ended with the context, whatever it does then."""
    reading, writing = os.pipe()
    command = module_command("engines.backends.tensorrt.build.worker", str(writing), str(os.getpid()))
    with os.fdopen(reading, encoding="utf-8") as events:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                pass_fds=(writing,),
            )
        finally:
            os.close(writing)
        try:
            assert process.stdin
            with (
                suppress(BrokenPipeError),
                process.stdin as stdin,
            ):  # a child that died at once: its events end
                stdin.write(request.to_json().encode())
            yield process, events
        finally:
            process.kill()
            process.wait()


def _facts(event: dict[str, Any]) -> EngineFacts:
    if "user_error" in event:
        raise UserError(event["user_error"])
    if "engine_error" in event:
        raise EngineError(event["engine_error"])
    return EngineFacts.from_json_object(event["facts"])


def _death(request: BuildRequest, code: int, phase: str, said: IO[bytes]) -> str:
    """One clear error for a process that ended without a result."""
    how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
    message = f"The process that built the {request.graph} engine ended with {how} in phase {phase!r}."
    if code == -signal.SIGKILL:
        message += (
            " Nobody but the kernel kills like that, mostly for want of memory: free some, lower the limits, "
            "or build one engine at a time."
        )
    said.seek(0, os.SEEK_END)
    said.seek(max(0, said.tell() - _SAID_BYTES))
    last_words = said.read().decode(errors="replace").strip()
    return f"{message} It said:\n{last_words}" if last_words else message
