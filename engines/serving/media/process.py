"""The processes that decode media, as the server holds them: one that forks the others, each of these with its job."""

import contextlib
import math
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from engines.serving.media.channel import Job, Reply, receive_reply, send_job, shared_memory
from plugins.child_python import interpreter, module_command

_START_SECONDS = 30.0
_POLL_MS = 50
_NICENESS = 5
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class LargeJobError(Exception):
    """A job takes more computing than it may."""


class Parent:
    """The process that forks workers."""

    def __init__(self, memory_bytes: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                module_command("engines.serving.media.worker", str(theirs.fileno()), str(memory_bytes)),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # One thread, or forking is unsafe; few arenas, or the bound on memory counts what nobody uses.
                env={
                    **os.environ,
                    "OPENBLAS_NUM_THREADS": "1",
                    "OMP_NUM_THREADS": "1",
                    "MALLOC_ARENA_MAX": "2",
                },
            )
        self._control = ours
        self._control.settimeout(_START_SECONDS)
        if self._control.recv(1) != b"r":
            raise OSError(f"the media process did not start; tried {interpreter()}")

    def fork(self) -> "Worker":
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"f"], [theirs.fileno()])
        process = int.from_bytes(self._control.recv(4))
        if not process:
            ours.close()
            raise OSError("the media process is gone")
        return Worker(ours, process)

    def end(self) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()


class Worker:
    """One process that decodes."""

    def __init__(self, connection: socket.socket, process: int) -> None:
        self._connection, self._number = connection, process
        self.is_slowed = False
        try:
            self._process: int | None = os.pidfd_open(process)
        except OSError:  # gone already
            self._process = None

    def slow_down(self) -> None:
        """Let the engine, and whoever shows a small picture, go first from now on."""
        if not self.is_slowed:
            self.is_slowed = True
            with contextlib.suppress(OSError):  # gone: its socket tells
                os.setpriority(os.PRIO_PROCESS, self._number, os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)

    def is_alive(self) -> bool:
        return self._process is not None and not select.select([self._connection], [], [], 0)[0]

    def run(
        self,
        job: Job,
        files: list[bytes],
        deadline: float,
        is_cancelled: Callable[[], bool],
        cpu_seconds: float = math.inf,
    ) -> Reply:
        """Run a job.

        Raises:
            TimeoutError: not done in time, or the client left.
            LargeJobError: it takes more than `cpu_seconds` of computing.
            EOFError, ValueError, ConnectionError: the process ended, or answered nonsense.
        """
        self._connection.settimeout(max(0.01, deadline - time.monotonic()))
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        most_cpu_seconds = self._cpu_seconds() + cpu_seconds

        def fill(buffer: memoryview) -> None:
            while buffer:
                while not poll.poll(_POLL_MS):
                    if is_cancelled() or time.monotonic() >= deadline:
                        raise TimeoutError
                    if self._cpu_seconds() > most_cpu_seconds:
                        raise LargeJobError
                count = self._connection.recv_into(buffer)
                if count == 0:
                    raise EOFError
                buffer = buffer[count:]

        factor = job.reader.image_settings.factor
        most_pixels = 2 * job.reader.video_settings.max_tokens * factor**2 + (1 << 24)
        with shared_memory(3 * most_pixels) as memory:
            send_job(self._connection, job, files, memory)
            return receive_reply(fill, memory)

    def _cpu_seconds(self) -> float:
        """What it has computed so far, however busy the machine is."""
        try:
            text = Path(f"/proc/{self._number}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:  # gone: its socket tells
            return 0.0
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / _TICKS_A_SECOND

    def end(self) -> None:
        self._connection.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            os.close(self._process)
            self._process = None
