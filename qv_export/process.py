"""The process around a command: exit codes, signals, and standard streams that were closed before it began.

Nothing heavy is imported here: it is set up before Click and the commands are loaded, so that an interrupt during their
import ends like any other.
"""

import os
import signal
import sys
from enum import IntEnum
from types import FrameType
from typing import NoReturn


class ExitCode(IntEnum):
    DONE = 0
    GATE_FAILED = 1
    USER_ERROR = 2
    FAULT = 3
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141
    TERMINATED = 143


_interrupts: list[int] = []


def prepare() -> None:
    """Open closed streams and take the signals; called again, it does nothing new."""
    _open_closed_streams()
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a background job of a shell ignores Ctrl-C
        signal.signal(signal.SIGINT, _interrupt)


def was_interrupted() -> bool:
    """Whether Ctrl-C came, even where a library made another error of it."""
    return bool(_interrupts)


def leave(code: int) -> NoReturn:
    """Flush what was written and exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = ExitCode.OUTPUT_CLOSED
    if code == ExitCode.OUTPUT_CLOSED:
        # The interpreter flushes once more at its end; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if was_interrupted():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C needs no words either
    sys.exit(code)


def _open_closed_streams() -> None:
    """Without them, the next file that is opened would get a stream's number, and libraries would write into it.

    A closed stdout becomes a pipe without a reader: who writes to it ends as for a reader that went away.
    """
    if sys.stdin is None:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - a descriptor, for good
    if sys.stdout is None:
        reader, writer = os.pipe()
        if reader == 1:  # the lowest free number: keep the writing end there
            reader = os.dup(reader)
        os.dup2(writer, 1)
        os.close(reader)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    _interrupts.append(number)
    raise KeyboardInterrupt


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    """Leave by an exception, so that nothing half-written stays."""
    raise SystemExit(ExitCode.TERMINATED)
