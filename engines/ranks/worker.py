"""A rank as a process: opens its part of a bundle, then computes what the leader asks until that ends.

python -m engines.ranks.worker ADDRESS        (under `mpirun`, started by `engines.ranks.group`)
"""

import logging
import os
import sys
import threading
import time
import traceback
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from engines.backends import backend_of
from engines.ranks.messages import KEY_VARIABLE, Opened, Start
from engines.ranks.peers import MpiPeers
from engines.ranks.rank import Rank, portable_error
from engines.session import RankSessions
from export.bundle import open_bundle
from export.records.engine_record import read_engine_record

_PARENT_POLL_SECONDS = 0.5


def main(address: str) -> None:
    """Compute until the leader says so, or is gone."""
    from mpi4py import MPI  # noqa: PLC0415 - starts MPI

    peers = MpiPeers(MPI.COMM_WORLD)
    try:
        if peers.rank == 0:
            _lead(peers, _connected(address))
        else:
            os.environ.pop(KEY_VARIABLE, None)
            _follow(peers)
        peers.flush()
    except BaseException:  # noqa: BLE001 - the others would wait for this one for ever
        traceback.print_exc()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)


def _connected(address: str) -> Connection:
    key = os.environ.pop(KEY_VARIABLE)
    try:
        return Client("\0" + address, "AF_UNIX", bytes.fromhex(key))
    except OSError as error:
        raise SystemExit(
            f"The first rank cannot reach its leader ({error}): it must run on the leader's machine. Name that "
            "machine first in the hostfile."
        ) from None


def _lead(peers: MpiPeers, link: Connection) -> None:
    try:
        start = link.recv()
        _tell(peers, start)
        sessions, problem = _opened(start, peers)
        found = [_outcome(sessions, problem), *(peers.receive(rank) for rank in range(1, peers.size))]
        problems = [one for one in found if isinstance(one, Exception)]
        sizes = [one for one in found if isinstance(one, tuple)]
        num_slots, capacity = map(min, zip(*sizes, strict=True)) if sizes else (0, 0)
        link.send(problems[0] if problems else Opened(num_slots, capacity, _files_of_mpi()))
        if sessions is None or problems:
            return
        rank = Rank(peers, start.layout, sessions)
        while (asked := link.recv()) is not None:
            number, command = asked
            link.send((number, rank.lead(command)))
    except (EOFError, OSError):
        return  # the leader is gone
    finally:
        _tell(peers, None)


def _follow(peers: MpiPeers) -> None:
    start = peers.receive(0)
    if start is None:
        return
    sessions, problem = _opened(start, peers)
    peers.send(0, _outcome(sessions, problem))
    if sessions is None:
        return  # the first rank ends the group
    rank = Rank(peers, start.layout, sessions)
    while (command := peers.receive(0)) is not None:
        rank.follow(command)


def _tell(peers: MpiPeers, message: Any) -> None:
    for rank in range(1, peers.size):
        peers.send(rank, message)


def _opened(start: Start, peers: MpiPeers) -> tuple[RankSessions | None, Exception | None]:
    stage = start.layout.stage_of(peers.rank)
    # Every rank takes part in the division, whatever becomes of it: MPI waits for all of them.
    group = peers.divided(start.layout.num_stages if stage is None else stage)
    try:
        bundle = open_bundle(start.bundle)
        record = None if start.key is None else read_engine_record(bundle.engine_directory(start.key))
        backend = backend_of(start.target)
        sessions = backend.open_rank(
            bundle,
            record,
            stage,
            num_slots=start.num_slots,
            capacity=start.capacity,
            num_threads=start.num_threads or _fair_threads(),
            device=f"cuda:{_local_rank()}" if backend.device == "gpu" else None,
            communicator=group if start.layout.num_parts > 1 and stage is not None else None,
        )
    except Exception as error:  # noqa: BLE001 - the leader is told
        return None, portable_error(error)
    return sessions, None


def _outcome(sessions: RankSessions | None, problem: Exception | None) -> tuple[int, int] | Exception | None:
    """Slots and capacity, None of a rank without a stage, or what was raised."""
    if problem is not None or sessions is None:
        return problem
    return None if sessions.stage is None else (sessions.stage.num_slots, sessions.stage.capacity)


def _files_of_mpi() -> tuple[Path, ...]:
    """The segments through which ranks of this machine speak, and the directory of `mpirun`."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    segments = {Path(line.split(maxsplit=5)[5]) for line in maps if "/sm_segment." in line}
    directory = os.environ.get("PMIX_SERVER_TMPDIR")
    return (*sorted(segments), *([Path(directory)] if directory else []))


def _local_rank() -> int:
    """Which of the ranks of this machine this one is."""
    return int(os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0"))


def _fair_threads() -> int:
    """The cores of this machine, shared among the ranks on it."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1")))


def _leave_with_parent() -> None:
    """End when `mpirun` does: by a signal that cannot be caught it leaves its ranks behind."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="rank: %(message)s")
    _leave_with_parent()
    main(sys.argv[1])
