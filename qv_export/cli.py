"""The command line: its commands, the options that all of them take, and how an error is told.

Exit codes: 0 done, 1 a gate failed, 2 the user's mistake (one message, no traceback), 3 a fault of ours or of the
machine, 130 and 143 interrupted and terminated, 141 the reader of our output went away.

Only Click is imported here: commands import what they need when they run, so that `--help` is instant.
"""

import logging
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import click

from export.errors import UserError, with_remedy
from export.wording import plain_text
from qv_export.commands.batch import batch
from qv_export.commands.bench import bench
from qv_export.commands.build import build_command
from qv_export.commands.chat import chat
from qv_export.commands.deploy import deploy
from qv_export.commands.doctor import doctor
from qv_export.commands.export import export_command
from qv_export.commands.inspect import inspect
from qv_export.commands.run.command import run
from qv_export.commands.serve import serve_command
from qv_export.commands.validate import validate_command
from qv_export.parameters import MistakenValue
from qv_export.process import ExitCode, leave, prepare, was_interrupted
from qv_export.show.console import print_json

__all__ = ["ExitCode", "cli", "main", "run_command_line"]

DEBUG_HELP = "Show tracebacks and what the libraries log."
QUIET_HELP = "No progress and no warnings on stderr; errors stay."


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
@click.option("--debug", is_flag=True, help=DEBUG_HELP)
@click.option("-q", "--quiet", is_flag=True, help=QUIET_HELP)
def cli(debug: bool, quiet: bool) -> None:
    """Qwen2-VL from a checkpoint to ONNX graphs and engines.

    A first tour: `qv-export export CHECKPOINT -o BUNDLE`, then `qv-export run BUNDLE --image photo.jpg --prompt "..."`.
    """
    logging.addLevelName(logging.WARNING, "warning")
    logging.basicConfig(handlers=[_log_handler()])
    set_verbosity(debug, quiet)


class _PlainFormatter(logging.Formatter):
    """Names in a warning come from whoever wrote the file."""

    def format(self, record: logging.LogRecord) -> str:
        return plain_text(super().format(record))


def _log_handler() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(_PlainFormatter("%(levelname)s: %(message)s"))
    return handler


def set_verbosity(debug: bool, quiet: bool) -> None:
    """How much the libraries' logs and warnings say."""
    logging.getLogger().setLevel(logging.DEBUG if debug else logging.ERROR if quiet else logging.WARNING)
    if not debug:
        # Deprecations inside of torch and its like are nothing that a user can mend.
        warnings.simplefilter("ignore")


def _also_here(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """An option of the group that was given after the command."""
    if value and parameter.name:
        root = ctx.find_root().params
        root[parameter.name] = True
        set_verbosity(root.get("debug", False), root.get("quiet", False))


def add_command(group: click.Group, command: click.Command) -> None:
    """Add a command, and give it and those below it the options that all commands take."""
    group.add_command(command)
    for member in command.commands.values() if isinstance(command, click.Group) else (command,):
        member.params += [
            click.Option(
                names, is_flag=True, expose_value=False, callback=_also_here, help=help_text, is_eager=True
            )
            for names, help_text in ((["--debug"], DEBUG_HELP), (["-q", "--quiet"], QUIET_HELP))
        ]


for command in (
    export_command,
    build_command,
    run,
    chat,
    serve_command,
    batch,
    bench,
    validate_command,
    deploy,
    inspect,
    doctor,
):
    add_command(cli, command)


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    prepare()
    leave(run_command_line(sys.argv[1:]))


@dataclass(frozen=True)
class Ending:
    """How a command line that went wrong ended."""

    code: ExitCode
    message: str
    remedy: str | None = None

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        return {"code": int(self.code), "message": self.message, "remedy": self.remedy}


def run_command_line(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; every error becomes a message on stderr.

    With `--json` among the arguments it is one object on stdout as well: code, message, remedy.
    """
    level = logging.getLogger().level
    try:
        return int(cli.main(list(arguments), prog_name="qv-export", standalone_mode=False) or ExitCode.DONE)
    except SystemExit as exit_request:
        return exit_request.code if isinstance(exit_request.code, int) else ExitCode.FAULT
    except BaseException as error:  # noqa: BLE001 - the last resort: whatever it is, a library's panic too, gets an exit code
        ending = _ending_of(error, arguments)
        if isinstance(error, click.ClickException) and ending.code == ExitCode.USER_ERROR:
            error.show()
        else:
            if "--debug" in arguments and ending.code != ExitCode.INTERRUPTED:
                traceback.print_exc()
            click.echo(_line(ending), err=True)
        return _tell_machine(ending) if "--json" in arguments else ending.code
    finally:
        logging.getLogger().setLevel(level)


def _ending_of(error: BaseException, arguments: Sequence[str]) -> Ending:
    # Ctrl-C, within Click or outside; a library may make an error of its own of it.
    if was_interrupted() or isinstance(error, click.Abort | KeyboardInterrupt):
        return Ending(ExitCode.INTERRUPTED, "interrupted")
    if isinstance(error, click.ClickException):
        return _ending_of_click(error)
    if isinstance(error, UserError):
        return Ending(ExitCode.USER_ERROR, error.message, error.remedy)
    if isinstance(error, ModuleNotFoundError):
        from export.install import missing_module_error

        if mistake := missing_module_error(error.name or ""):
            return Ending(ExitCode.USER_ERROR, mistake.message, mistake.remedy)
    if isinstance(error, MemoryError):
        message = f"this machine has too little memory: {error or 'none is left'}"
        return Ending(
            ExitCode.FAULT, message, "Ask for less: a smaller --max-context, fewer or smaller pictures."
        )
    [summary, *_] = traceback.format_exception_only(error)[-1].strip().splitlines() or [repr(error)]
    hint = (
        None
        if "--debug" in arguments
        else f"For the traceback: {shlex.join(['qv-export', '--debug', *arguments])}"
    )
    return Ending(ExitCode.FAULT, f"a fault of qv-export or of this machine: {summary}", hint)


def _ending_of_click(error: click.ClickException) -> Ending:
    if isinstance(error, MistakenValue) and error.remedy is not None:
        return Ending(ExitCode.USER_ERROR, error.found(), error.remedy)
    context = getattr(error, "ctx", None)
    remedy = f"{context.command_path} --help" if context else None
    return Ending(ExitCode.USER_ERROR, error.format_message(), remedy)


def _line(ending: Ending) -> str:
    if ending.code == ExitCode.INTERRUPTED:
        return ending.message
    message = f"error: {ending.message}"
    if ending.code == ExitCode.FAULT and ending.remedy:
        return plain_text(f"{message}\n{ending.remedy}")
    return plain_text(with_remedy(message, ending.remedy))


def _tell_machine(ending: Ending) -> ExitCode:
    try:
        print_json(ending.to_json())
    except BrokenPipeError:
        return ExitCode.OUTPUT_CLOSED
    return ending.code
