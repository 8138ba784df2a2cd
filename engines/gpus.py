"""The NVIDIA GPUs in this machine, asked of `nvidia-smi`, so that no CUDA library is loaded."""

import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class GpuFacts:
    """A GPU as `nvidia-smi` sees it."""

    name: str
    driver: str
    compute_capability: tuple[int, int]
    memory_mib: int

    @property
    def sm(self) -> int:
        """The architecture as one number: 89 for compute capability 8.9."""
        major, minor = self.compute_capability
        return 10 * major + minor


def gpu_facts() -> tuple[GpuFacts, ...]:
    """Ask `nvidia-smi`; a machine without it, or without a working driver, has no GPU."""
    return gpu_facts_from_csv(_asked("name,driver_version,compute_cap,memory.total"))


def used_memory_bytes() -> int | None:
    """In use on the first GPU, by every process; None where `nvidia-smi` does not say."""
    first = next(iter(_asked("memory.used").splitlines()), "").strip()
    return int(first) << 20 if first.isdigit() else None


def _asked(query: str) -> str:
    """Lines of `nvidia-smi`, one a GPU; none where it is missing or fails."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout


def gpu_facts_from_csv(text: str) -> tuple[GpuFacts, ...]:
    """Parse the lines of `nvidia-smi`; a field that it does not know reads [N/A]."""
    gpus = []
    for line in text.splitlines():
        name, driver, capability, memory = (field.strip() for field in line.rsplit(",", 3))
        major, _, minor = capability.partition(".")
        gpus.append(GpuFacts(name, driver, (_integer(major), _integer(minor)), _integer(memory)))
    return tuple(gpus)


def _integer(text: str) -> int:
    return int(text) if text.isdigit() else 0
