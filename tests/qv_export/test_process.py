"""The real process: streams that were closed before it began, and interrupts at any moment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GRAPHLESS = [sys.executable, "-m", "qv_export"]

INTERRUPTED_IMPORT = """
# A shell that runs the tests in the background has them ignore Ctrl-C, which children inherit.
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            {action}

sys.meta_path.insert(0, Interrupt())
sys.argv = ["qv-export", "doctor"]
from qv_export.__main__ import main
main()
"""
INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"
# What numpy makes of an interrupt while its C part is imported.
TURNED = f"""
            try:
                {INTERRUPT}
            except KeyboardInterrupt:
                raise ImportError("numpy._core.umath failed to import")
"""


def closing(*descriptors: int, arguments: list[str]) -> "subprocess.CompletedProcess[bytes]":
    """Run the command line with standard streams closed, as the shell's `>&-` does."""
    closed = "".join(f"{number}{'<' if number == 0 else '>'}&- " for number in descriptors)
    return subprocess.run(
        ["bash", "-c", f'exec "$@" {closed}', "bash", *GRAPHLESS, *arguments],
        cwd=ROOT,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=120,
    )


def test_a_closed_stdout_ends_like_a_reader_that_went_away() -> None:
    done = closing(1, arguments=["doctor", "--json"])
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_closed_stdout_does_not_matter_to_who_writes_nothing_there(tmp_path: Path) -> None:
    done = closing(1, arguments=["run", str(tmp_path), "--prompt", "x"])
    assert done.returncode == 2
    assert b"is not a bundle" in done.stderr


def test_closed_streams_are_no_fault(tmp_path: Path) -> None:
    assert closing(0, 1, 2, arguments=["run", str(tmp_path), "--prompt", "x"]).returncode == 2
    assert closing(0, arguments=["run", str(tmp_path), "--prompt", "-"]).returncode == 2
    done = closing(2, arguments=["--version"])
    assert (done.returncode, done.stdout[:10]) == (0, b"qv-export ")


@pytest.mark.parametrize("module", ["click", "qv_export.cli", "export.errors", "qv_export.commands.doctor"])
def test_an_interrupt_while_the_commands_are_imported_leaves_no_traceback(module: str) -> None:
    done = interrupted(module, INTERRUPT)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["qv_export.show.machine", "engines.gpus"])
@pytest.mark.parametrize("action", [INTERRUPT, TURNED])
def test_an_interrupt_inside_a_command_is_none_of_ours_to_mend(module: str, action: str) -> None:
    done = interrupted(module, action)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.split() == ["interrupted"]


def interrupted(module: str, action: str) -> "subprocess.CompletedProcess[str]":
    code = INTERRUPTED_IMPORT.format(module=module, action=action)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def test_a_background_job_goes_on_ignoring_interrupts() -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code += "from qv_export.process import prepare; prepare()\nprint(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert os.getpid()
