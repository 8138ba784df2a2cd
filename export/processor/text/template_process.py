"""The process in which this one has chat templates rendered: started at the first, ended when one takes too long."""

import atexit
import contextlib
import os
import select
import subprocess
import threading
from collections.abc import Mapping
from typing import Any

from export.processor.text.template_worker import read_message, write_message
from plugins.child_python import program_command

MEMORY_BYTES = 512 << 20
_START_SECONDS = 60


class TemplateProcessError(Exception):
    """The process did not answer in time, or ended."""


class TemplateProcess:
    """One process for all templates of this one. Jobs go one after another: an honest one takes less than 1 ms."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, job: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Have a job done.

        Args:
            job: `source`, `variables` and `max_characters`.
            seconds: what it may take, once the process runs.

        Raises:
            TemplateProcessError: it took longer, or ended the process.
            OSError: no process can be started.
        """
        with self._lock:
            process = self._running()
            try:
                write_message(process.stdin, {**job, "seconds": seconds})  # type: ignore[arg-type]
                answer = self._answer(process, seconds)
            except (OSError, EOFError, ValueError):
                self._end()
                raise TemplateProcessError("it ended the process that renders it") from None
            except BaseException:
                self._end()
                raise
            if answer is None:
                self._end()
                raise TemplateProcessError(f"it ran longer than {seconds:g} s")
            return answer

    def forget(self) -> None:
        """In a fork of this process: its parent's process is not to be talked to."""
        self._lock, self._process = threading.Lock(), None

    def close(self) -> None:
        """End the process; the next job starts another."""
        with self._lock:
            self._end()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            self._end()
            code = f"from export.processor.text.template_worker import main; main({MEMORY_BYTES})"
            self._process = subprocess.Popen(
                program_command(code),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            ready = {"source": "", "variables": {}, "max_characters": 0, "seconds": _START_SECONDS}
            write_message(self._process.stdin, ready)  # type: ignore[arg-type]
            if self._answer(self._process, _START_SECONDS) is None:
                self._end()
                raise OSError(f"the process that renders chat templates did not start in {_START_SECONDS} s")
        return self._process

    def _answer(self, process: "subprocess.Popen[bytes]", seconds: float) -> dict[str, Any] | None:
        """The process's answer; None when there is none in time."""
        assert process.stdout is not None
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return None
        answer: dict[str, Any] | None = read_message(process.stdout)  # type: ignore[arg-type]
        if answer is None:
            raise EOFError
        return answer

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


TEMPLATE_PROCESS = TemplateProcess()
atexit.register(TEMPLATE_PROCESS.close)
os.register_at_fork(after_in_child=TEMPLATE_PROCESS.forget)
