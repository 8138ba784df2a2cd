import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pytest

from export.errors import UserError
from qv_export import cli as cli_module
from qv_export.cli import cli, run_command_line
from qv_export.show.console import note

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = [sys.executable, "-m", "qv_export"]


def qv_export(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [*SCRIPT, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300, **options
    )


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Install a function as the command `probe`."""

    def install(body: Callable[[], None]) -> None:
        monkeypatch.setitem(cli.commands, "probe", click.Command("probe", callback=body))

    return install


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


def test_a_command_that_ends_well_exits_with_0(command) -> None:
    command(lambda: None)
    assert run_command_line(["probe"]) == 0


def test_a_users_mistake_is_one_message_and_exit_2(command, capsys: pytest.CaptureFixture[str]) -> None:
    command(raising(UserError("expected a picture, found a song")))
    assert run_command_line(["probe"]) == 2
    assert capsys.readouterr() == ("", "error: expected a picture, found a song\n")


def test_a_fault_is_one_line_with_the_way_to_its_traceback(
    command, capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(ZeroDivisionError("by\nzero")))
    assert run_command_line(["probe"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "error: a fault of qv-export or of this machine: ZeroDivisionError: by\n"
        "For the traceback: qv-export --debug probe\n"
    )


class Panic(BaseException):
    """As the native libraries raise it: no `Exception`."""


def test_a_native_librarys_panic_is_a_fault_and_no_failed_gate(
    command, capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(Panic("called `Option::unwrap()`")))
    assert run_command_line(["probe"]) == 3
    assert capsys.readouterr().err.startswith("error: a fault of qv-export or of this machine: ")


@pytest.mark.parametrize(("error", "code"), [(ZeroDivisionError("zero"), 3), (UserError("yours"), 2)])
def test_debug_shows_the_traceback(
    command, error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(error))
    assert run_command_line(["--debug", "probe"]) == code
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_interrupt_exits_with_130_and_no_traceback(command, capsys: pytest.CaptureFixture[str]) -> None:
    command(raising(KeyboardInterrupt()))
    assert run_command_line(["probe"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_went_away_exits_with_141(command, capsys: pytest.CaptureFixture[str]) -> None:
    command(raising(BrokenPipeError()))
    assert run_command_line(["probe"]) == 141
    assert capsys.readouterr().err == ""


def test_a_failed_gate_may_exit_with_1(command) -> None:
    command(lambda: click.get_current_context().exit(1))
    assert run_command_line(["probe"]) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--nonsense"],
        ["export"],
        ["export", "/nowhere", "-o", "bundle"],
        ["export", ".", "-o", "bundle", "--dtype", "int3"],
        ["run", "bundle"],
        ["run", "bundle", "--prompt", "x", "--image", "/nowhere.png"],
        ["run", "bundle", "--prompt", "x", "--max-new-tokens", "0"],
        ["run", "bundle", "--prompt", "x", "--seed", "-1"],
        ["inspect", "/nowhere"],
    ],
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Error: " in err
    assert "Traceback" not in err


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["--version"]) == 0
    assert capsys.readouterr().out == f"qv-export {version('qv-export')}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["run", "--help"]])
def test_help_names_every_command_or_option(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command_line(arguments)
    out, err = capsys.readouterr()
    expected = (
        ("--image", "--video", "--json") if "run" in arguments else ("export", "run", "inspect", "doctor")
    )
    assert code == (0 if arguments else 2)
    assert all(name in out + err for name in expected)


# Options of the group after the command


@pytest.mark.parametrize("arguments", [["-q", "probe"], ["probe", "-q"], ["probe", "--quiet"]])
def test_quiet_is_the_same_before_and_after_the_command(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    group = click.Group("probes")
    cli_module.add_command(group, click.Command("probe", callback=lambda: note("chatter")))
    monkeypatch.setitem(cli.commands, "probe", group.commands["probe"])
    assert run_command_line(["probe"]) == 0
    assert capsys.readouterr().err == "chatter\n"
    assert run_command_line(arguments) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "name", ["export", "build", "run", "validate", "inspect", "doctor", ("deploy", "triton")]
)
def test_every_command_takes_what_all_take(
    name: str | tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    path = [name] if isinstance(name, str) else list(name)
    assert run_command_line([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--debug" in shown
    assert "-q, --quiet" in shown


def test_debug_after_the_command_shows_the_traceback(command, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["run", "/nowhere", "--prompt", "x", "--debug"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


# Errors as JSON


def json_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    code = run_command_line(arguments)
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_a_users_mistake_is_one_json_object_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told, err = json_of(["run", str(tmp_path), "--prompt", "x", "--json"], capsys)
    assert told == {
        "code": code,
        "message": f"{tmp_path} is not a bundle: manifest.json not found.",
        "remedy": f"Make one: qv-export export CHECKPOINT -o {tmp_path}",
    }
    assert err.endswith(f"error: {told['message']} {told['remedy']}\n")


def test_a_wrong_option_is_json_with_the_way_to_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, told, _ = json_of(["run", "bundle", "--json", "--promt", "x"], capsys)
    assert (code, told["code"], told["remedy"]) == (2, 2, "qv-export run --help")
    assert "--promt" in told["message"]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ZeroDivisionError("zero"), 3, "ZeroDivisionError: zero"),
        (MemoryError("Unable to allocate 35.8 GiB"), 3, "too little memory: Unable to allocate 35.8 GiB"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (UserError("yours"), 2, "yours"),
    ],
)
def test_every_ending_is_json(
    error: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    probe = click.Command(
        "probe",
        callback=lambda as_json: raising(error)(),
        params=[click.Option(["--json", "as_json"], is_flag=True)],
    )
    monkeypatch.setitem(cli.commands, "probe", probe)
    found, told, _ = json_of(["probe", "--json"], capsys)
    assert found == told["code"] == code
    assert says in told["message"]
    assert set(told) == {"code", "message", "remedy"}


# The real process


def test_the_process_returns_the_exit_code_and_keeps_stdout_clean(tmp_path: Path) -> None:
    done = qv_export("run", tmp_path, "--prompt", "hello")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path} is not a bundle")


@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"], ["--help"], ["run", "--help"]])
def test_output_into_a_closed_pipe_ends_quietly(arguments: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [*SCRIPT, *arguments],
        cwd=ROOT,
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, "")


WAITING = """
# A shell that runs the tests in the background has them ignore Ctrl-C, which children inherit.
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import sys, time
from pathlib import Path
import click
from qv_export import cli
from export.bundle import writing_bundle

@cli.cli.command()
def probe():
    with writing_bundle(Path(sys.argv[2])):
        print("ready", flush=True)
        time.sleep(600)

cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_half_written(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING.replace("sys.argv[2]", repr(str(tmp_path / "bundle"))), "probe"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_every_exit_code_is_the_documented_one() -> None:
    assert {code.name: code.value for code in cli_module.ExitCode} == {
        "DONE": 0,
        "GATE_FAILED": 1,
        "USER_ERROR": 2,
        "FAULT": 3,
        "INTERRUPTED": 130,
        "OUTPUT_CLOSED": 141,
        "TERMINATED": 143,
    }
