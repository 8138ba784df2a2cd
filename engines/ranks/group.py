"""A group of ranks as its leader holds it: started and ended as one, asked one thing after another.

The leader speaks with the first rank over a socket of this machine alone; when either end goes, so does the other.
"""

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

from engines.ranks.launch import launch_command, launch_environment
from engines.ranks.messages import Command, Opened, Start
from engines.ranks.rank import Answer
from engines.runtime.lost import EngineLostError

logger = logging.getLogger(__name__)

_TRIES = 3
_FIRST_PAUSE_SECONDS = 0.5
_REST_SECONDS = 10.0
"""After which it is tried again, once no try has succeeded."""
_CONNECT_SECONDS = 120.0
_POLL_SECONDS = 0.1
_STDERR = 2
_END_SECONDS = 10.0


class RankGroup:
    """See the module. Calls may come from any thread, and go through one of its own: what interrupts who waits for an
    answer leaves the connection in order.

    Args:
        start: what the ranks open.
        hostfile: see `launch_command`.

    Raises:
        UserError: MPI is missing, or a rank cannot open its part.
        EngineLostError: the ranks ended before they had begun.
    """

    def __init__(self, start: Start, hostfile: Path | None = None) -> None:
        self._start, self._hostfile = start, hostfile
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ranks")
        self._number = 0
        self._not_before = 0.0
        self._members: _Members | None = _Members(start, hostfile)
        self.opened = self._members.opened

    def call(self, command: Command) -> list[Answer]:
        """An answer for each call of a command.

        Raises:
            EngineLostError: the group ended, now or before; `recover` starts it anew.
        """
        return self._thread.submit(self._exchange, command).result()

    def recover(self) -> bool:
        """Start the group anew if it has ended.

        Returns:
            Whether it had: what it held is gone.

        Raises:
            EngineLostError: it cannot be started.
        """
        return self._thread.submit(self._recover).result()

    def close(self) -> None:
        """End the group."""
        self._thread.submit(self._end).result()
        self._thread.shutdown()

    # In the group's own thread

    def _exchange(self, command: Command) -> list[Answer]:
        if self._members is None:
            raise EngineLostError("the ranks have ended; they are started anew before the next question")
        self._number += 1
        try:
            return self._members.exchange(self._number, command)
        except (EOFError, OSError):
            raise EngineLostError(f"a rank ended in the middle of an answer ({self._end()})") from None

    def _recover(self) -> bool:
        if self._members is not None and self._members.is_alive():
            return False
        if time.monotonic() < self._not_before:
            raise EngineLostError("the ranks could not be started anew just now; they are tried again soon")
        self._end()
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
            try:
                self._members = _Members(self._start, self._hostfile)
            except Exception as error:  # noqa: BLE001 - told at the end, and tried again before
                logger.warning(
                    "attempt %d of %d to start the ranks anew failed: %s", attempt + 1, _TRIES, error
                )
                last = error
            else:
                logger.warning("the ranks were started anew")
                return True
        self._not_before = time.monotonic() + _REST_SECONDS
        raise EngineLostError(f"the ranks could not be started anew in {_TRIES} attempts; the last: {last}")

    def _end(self) -> str:
        """End what is left; gives how it ended."""
        members, self._members = self._members, None
        return "they had ended before" if members is None else members.end()


class _Members:
    """The processes of a group, and the connection to the first; see `RankGroup`."""

    def __init__(self, start: Start, hostfile: Path | None) -> None:
        address, key = f"qv-export-ranks-{os.getpid()}-{secrets.token_hex(8)}", secrets.token_bytes(32)
        self.opened = Opened(0, 0)
        # Linux' abstract names are no files, so that nothing is left of one whatever ends us.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("\0" + address)
            listener.listen(1)
            process = subprocess.Popen(
                launch_command(start.layout.num_ranks, address, hostfile),
                stdin=subprocess.DEVNULL,
                stdout=_STDERR,
                env=launch_environment(key),
                start_new_session=True,  # Ctrl-C is the leader's: it ends the group when it has ended itself
            )
            self._process = process
            # Also at the interpreter's end, and when nobody holds the group any longer.
            self._kill = weakref.finalize(self, _end_process, process, 0.0)
            self._link = self._accepted(listener, key)
        try:
            self._link.send(start)
            opened = self._link.recv()
        except (EOFError, OSError):
            raise EngineLostError(f"the ranks ended while they opened the bundle ({self.end()})") from None
        if isinstance(opened, Exception):
            self.end()
            raise opened
        self.opened = opened

    def exchange(self, number: int, command: Command) -> list[Answer]:
        """Ask, and wait for the answer.

        Raises:
            EOFError, OSError: the first rank is gone.
        """
        self._link.send((number, command))
        answered, answers = self._link.recv()
        assert answered == number
        return list(answers)

    def is_alive(self) -> bool:
        """True while nothing shows that they have ended; ask between two exchanges."""
        return self._process.poll() is None and not self._link.poll(0)

    def end(self) -> str:
        """Let them end, or kill them; gives how they ended."""
        with contextlib.suppress(OSError):
            self._link.send(None)
        self._link.close()
        self._kill.detach()
        status = _end_process(self._process, _END_SECONDS)
        for path in self.opened.files if status < 0 else ():  # killed before it could tidy up
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        return f"mpirun ended with status {status}"

    def _accepted(self, listener: socket.socket, key: bytes) -> Connection:
        """The connection of the first rank, which has shown that it knows the key."""
        listener.settimeout(_POLL_SECONDS)
        deadline = time.monotonic() + _CONNECT_SECONDS
        while True:
            try:
                accepted, _ = listener.accept()
            except TimeoutError:
                status = self._process.poll()
                if status is None and time.monotonic() < deadline:
                    continue
                _end_process(self._process, 0.0)
                how = f"mpirun ended with status {status}" if status is not None else "none came in time"
                raise EngineLostError(
                    f"the ranks did not start ({how}); stderr has their own words"
                ) from None
            accepted.setblocking(True)
            link = Connection(accepted.detach())
            try:
                deliver_challenge(link, key)
                answer_challenge(link, key)
            except Exception:  # noqa: BLE001 - a stranger, or one that left: it may be tried again
                link.close()
                continue
            return link


def _end_process(process: "subprocess.Popen[Any]", seconds: float) -> int:
    """Wait for `mpirun`, which ends with its ranks; kill all of them when the time is up."""
    for how in (None, signal.SIGTERM, signal.SIGKILL):
        if how is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(seconds if how is None else _END_SECONDS)
    return process.wait()
