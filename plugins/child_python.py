"""Another Python with the modules of this one, which never looks for them in the current directory.

`python -m` and `python -c` search the current directory first. It is the user's bundle or checkpoint as often as not,
and a stranger's file of a module's name in there would be run.
"""

import json
import sys
import sysconfig
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours or of an installed package as `python -m` does.

    Raises:
        OSError: there is no Python, only a program that embeds it.
    """
    run = "import runpy; del sys.argv[0]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    return [*program_command(run), module, *arguments]


def program_command(program: str) -> list[str]:
    """The command that runs a program text as `python -c` does; what is appended to it is its `sys.argv[1:]`.

    Raises:
        OSError: there is no Python, only a program that embeds it.
    """
    return [interpreter(), "-I", "-c", f"import sys; sys.path[:] = {json.dumps(_places())}; {program}"]


def _places() -> list[str]:
    """Where this process finds modules, absolute places alone, and our own packages, however they were installed."""
    places = [place for place in sys.path if Path(place).is_absolute()]
    return places if str(_ROOT) in places else [*places, str(_ROOT)]


def interpreter() -> str:
    """This Python; inside of a server that embeds it, `sys.executable` may be the server's own program.

    Raises:
        OSError: none is found.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidates = [
        Path(sys.executable or "/"),
        Path(sys.exec_prefix, "bin", version),
        Path(sys.base_exec_prefix, "bin", version),
        Path(str(sysconfig.get_config_var("BINDIR")), version),
    ]
    for candidate in candidates:
        if candidate.name.startswith("python") and candidate.exists():
            return str(candidate)
    raise OSError("no Python interpreter found; looked for " + ", ".join(map(str, candidates)))
