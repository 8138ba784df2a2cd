"""What the leader sends to the first rank, and that to the others: Python objects, pickled.

All of them are this program in the same version, started by the leader: nothing from outside is unpickled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.ranks.layout import Layout
from export.inputs import DecoderInputs, VisionInputs

KEY_VARIABLE = "QV_EXPORT_RANKS_KEY"
"""The environment variable that brings the connection's key to the first rank."""


@dataclass(frozen=True)
class Start:
    """What every rank opens."""

    bundle: Path
    target: str
    key: str | None
    """Of the engine; None where the backend opens the graphs themselves."""
    layout: Layout
    num_slots: int
    capacity: int
    num_threads: int | None
    """CPU threads of each rank; None shares the cores of a machine among its ranks."""


@dataclass(frozen=True)
class Opened:
    """What the ranks have opened."""

    num_slots: int
    capacity: int
    files: tuple[Path, ...] = ()
    """What MPI keeps on this machine as long as they run; left behind if `mpirun` is killed."""


@dataclass(frozen=True, eq=False)
class Forward:
    """Calls of the decoder one behind the other, so that its stages work at once: each its first slot and inputs."""

    calls: Sequence[tuple[int, DecoderInputs]]


@dataclass(frozen=True, eq=False)
class Encode:
    """A call of the vision graph: to the first rank all of it, to another one its part."""

    inputs: VisionInputs


Command = Forward | Encode
