import subprocess

import pytest

from engines.gpus import GpuFacts, gpu_facts, gpu_facts_from_csv

H100 = GpuFacts("NVIDIA H100 80GB HBM3", "580.65.06", (9, 0), 81559)


def test_nvidia_smi_is_understood() -> None:
    text = "NVIDIA H100 80GB HBM3, 580.65.06, 9.0, 81559\nNVIDIA GB10, Rev. B, 580.1, 12.1, [N/A]\n"
    assert gpu_facts_from_csv(text) == (H100, GpuFacts("NVIDIA GB10, Rev. B", "580.1", (12, 1), 0))


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(), subprocess.CalledProcessError(9, "nvidia-smi"), subprocess.TimeoutExpired("x", 1)],
)
def test_no_working_driver_means_no_gpu(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert gpu_facts() == ()


def test_an_architecture_is_ten_times_the_compute_capability() -> None:
    assert H100.sm == 90
    assert GpuFacts("NVIDIA GB10", "580.1", (12, 1), 0).sm == 121
