"""Which commands are there, and with which exit code does each ending leave?

0 done, 1 a gate failed, 2 the user's mistake (one message, no traceback), 3 a fault of ours or of the machine,
130 and 143 interrupted and terminated, 141 the reader of our output went away.

Only Click is imported here: commands import what they need when they run, so that `--help` is instant.
"""

import logging
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import Any, NoReturn

import click

from export.errors import UserError
from qv_export.commands.build import build
from qv_export.commands.deploy import deploy
from qv_export.commands.doctor import doctor
from qv_export.commands.export import export
from qv_export.commands.inspect import inspect
from qv_export.commands.run import run
from qv_export.commands.validate import validate


class ExitCode(IntEnum):
    DONE = 0
    GATE_FAILED = 1
    USER_ERROR = 2
    FAULT = 3
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141
    TERMINATED = 143


@contextmanager
def closed_output() -> Iterator[None]:
    """Leave with our own code when the reader of our output went away: Click takes 1, which means a failed gate."""
    try:
        yield
    except BrokenPipeError:
        raise SystemExit(ExitCode.OUTPUT_CLOSED) from None


class Commands(click.Group):
    """The group at the top: everything is parsed and run within its two methods, `--help` in the first."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with closed_output():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with closed_output():
            return super().invoke(ctx)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 a gate failed, 2 a mistake in what was given, 3 a fault of qv-export or the machine.",
)
@click.version_option(None, "--version", "-V", package_name="qv-export", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries log.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no warnings on stderr; errors stay.")
def cli(debug: bool, quiet: bool) -> None:
    """Qwen2-VL from a checkpoint to ONNX graphs and engines.

    A first tour: `qv-export export CHECKPOINT -o BUNDLE`, then `qv-export run BUNDLE --image photo.jpg --prompt "..."`.
    """
    logging.addLevelName(logging.WARNING, "warning")
    level = logging.DEBUG if debug else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level)
    if not debug:
        # Deprecations inside of torch and its like are nothing that a user can mend.
        warnings.simplefilter("ignore")


for command in (export, build, run, validate, deploy, inspect, doctor):
    cli.add_command(command)


def main() -> NoReturn:
    """The entry point of the `qv-export` script."""
    signal.signal(signal.SIGTERM, _terminate)
    code = run_command_line(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = ExitCode.OUTPUT_CLOSED
    if code == ExitCode.OUTPUT_CLOSED:
        # The interpreter flushes once more at its end; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run_command_line(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; every error becomes a message on stderr."""
    try:
        return int(cli.main(list(arguments), prog_name="qv-export", standalone_mode=False) or ExitCode.DONE)
    except (click.Abort, KeyboardInterrupt):  # Ctrl-C, within Click or outside
        click.echo("interrupted", err=True)
        return ExitCode.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return ExitCode.USER_ERROR
    except SystemExit as exit_request:
        return exit_request.code if isinstance(exit_request.code, int) else ExitCode.FAULT
    except BaseException as error:  # noqa: BLE001 - the last resort: whatever it is, a library's panic too, gets an exit code
        _show_traceback(arguments)
        mistake = _users_mistake(error)
        click.echo(f"error: {mistake}" if mistake else _fault_message(error, arguments), err=True)
        return ExitCode.USER_ERROR if mistake else ExitCode.FAULT


def _users_mistake(error: BaseException) -> str | None:
    """What a user can mend, with the way to do it; None for a fault."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        from export.install import explain_missing_module

        return explain_missing_module(error.name or "")
    return None


def _fault_message(error: BaseException, arguments: Sequence[str]) -> str:
    [summary, *_] = traceback.format_exception_only(error)[-1].strip().splitlines() or [repr(error)]
    hint = (
        ""
        if "--debug" in arguments
        else f"\nFor the traceback: {shlex.join(['qv-export', '--debug', *arguments])}"
    )
    return f"error: a fault of qv-export or of this machine: {summary}{hint}"


def _show_traceback(arguments: Sequence[str]) -> None:
    if "--debug" in arguments:
        traceback.print_exc()


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    """Leave by an exception, so that nothing half-written stays."""
    raise SystemExit(ExitCode.TERMINATED)
