"""What an engine is built on or loaded on: the GPUs, and the version of each backend's library."""

from collections.abc import Mapping
from dataclasses import dataclass

from engines.gpus import GpuFacts


@dataclass(frozen=True)
class Machine:
    """What an engine is loaded on."""

    versions: Mapping[str, str | None]
    """Version of each backend's library, by the backend's name; None where it is missing or too old."""
    gpus: tuple[GpuFacts, ...]


def driver_branch(driver: str) -> int:
    """The number before the first dot of NVIDIA's driver version; 0 for what is no version."""
    major = driver.partition(".")[0]
    return int(major) if major.isdigit() else 0
