"""The processes of a group of ranks, and what they keep beside their memory."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil


def members(leader: int) -> list[psutil.Process]:
    """Every process of the groups below one: `mpirun` and its ranks. What else it started is none of them."""
    below = psutil.Process(leader).children(recursive=True)
    launchers = [child for child in below if child.name() in {"mpirun", "prterun"}]
    found = {one.pid: one for launcher in launchers for one in (launcher, *launcher.children(recursive=True))}
    return list(found.values())


def rank_processes(leader: int) -> list[psutil.Process]:
    """The ranks that a process leads, by rank."""
    found = {}
    for child in members(leader):
        number = child.environ().get("OMPI_COMM_WORLD_RANK")
        if number is not None and "engines.ranks.worker" in child.cmdline():
            found[int(number)] = child
    return [found[rank] for rank in sorted(found)]


def files_of(processes: Sequence[psutil.Process]) -> set[Path]:
    """What a group keeps outside of its processes' memory: segments that ranks share, and `mpirun`'s directory."""
    segments = {
        Path(mapped.path)
        for process in processes
        if process.name().startswith("python")
        for mapped in process.memory_maps()
        if "sm_segment" in mapped.path
    }
    return segments | {path for process in processes for path in Path("/tmp").glob(f"ompi.{process.pid}")}


def require_gone(
    processes: Sequence[psutil.Process], files: Iterable[Path] = (), seconds: float = 20.0
) -> None:
    """Nothing of a group is left, or not for long."""
    _, alive = psutil.wait_procs(processes, seconds)
    assert not alive
    assert not [path for path in files if path.exists()]
