from collections.abc import Callable

import pytest

from engines import packages
from engines.backends.onnxruntime import backend as onnxruntime_backend
from engines.backends.onnxruntime_cuda import backend as onnxruntime_cuda_backend
from engines.backends.tensorrt import library
from engines.gpus import GpuFacts
from qv_export.show.machine import (
    PackageFacts,
    machine_facts,
    memory_bytes,
    package_facts,
    package_warnings,
    target_facts,
)

H100 = GpuFacts("NVIDIA H100 80GB HBM3", "580.65.06", (9, 0), 81559)
L4 = GpuFacts("NVIDIA L4", "580.65.06", (8, 9), 23034)
T4 = GpuFacts("Tesla T4", "580.65.06", (7, 5), 15360)

Modules = Callable[..., None]


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Modules:
    """Pretend that just these modules are installed."""

    def install(*names: str, tensorrt: str | None = None) -> None:
        for module in (onnxruntime_backend, onnxruntime_cuda_backend, library):
            monkeypatch.setattr(module, "has_module", lambda name: name in names)
        found = {"tensorrt": tensorrt, "tensorrt-rtx": "1.7.1.116", "onnxruntime": "1.32.0"}
        monkeypatch.setattr(packages, "installed_version", found.get)

    return install


def test_requirements_are_compared_with_what_is_installed() -> None:
    click, torch, missing, gpu = package_facts(
        ["click>=8.2", "pytest<1", "surely-not-there>=2", 'also-not-there<3,>=1; extra == "gpu"']
    )
    assert click.fits
    assert click.installed
    assert not torch.fits
    assert missing == PackageFacts("surely-not-there", "", ">=2", None, False)
    assert gpu == PackageFacts("also-not-there", "gpu", ">=1,<3", None, False)


def test_only_what_is_needed_or_installed_is_warned_about() -> None:
    warnings = package_warnings(
        [
            PackageFacts("missing", "", ">=1", None, False),
            PackageFacts("old", "gpu", ">=2", "1.0", False),
            PackageFacts("optional", "gpu", ">=2", None, False),
            PackageFacts("fine", "", ">=2", "2.1", True),
        ]
    )
    assert [warning.split()[0] for warning in warnings] == ["missing", "old"]
    assert "pip install 'old>=2'" in warnings[1]


def test_two_packages_of_one_module_are_warned_about() -> None:
    both = [PackageFacts(name, "", ">=1", "1.32", True) for name in ("onnxruntime", "onnxruntime-gpu")]
    [warning] = package_warnings(both)
    assert "share one module" in warning


@pytest.mark.parametrize(
    ("installed", "tensorrt", "gpus", "builds", "runs"),
    [
        (["onnxruntime"], None, [], ["onnxruntime"], ["onnxruntime"]),
        (["tensorrt_rtx_bindings"], None, [], ["tensorrt-rtx"], []),
        (["tensorrt_rtx_bindings"], None, [H100], ["tensorrt-rtx"], []),
        (["tensorrt_rtx_bindings"], None, [L4], ["tensorrt-rtx"], ["tensorrt-rtx"]),
        (["tensorrt_rtx"], None, [H100, T4], ["tensorrt-rtx"], ["tensorrt-rtx"]),
        (["tensorrt"], "11.4.0.106", [H100], ["tensorrt"], ["tensorrt"]),
        (["tensorrt"], "11.4.0.106", [T4], [], []),
        (["tensorrt"], "10.14.1", [H100], [], []),
        (["tensorrt"], "11.4.0.106", [], [], []),
    ],
)
def test_a_target_needs_its_library_and_its_gpu(
    modules: Modules,
    installed: list[str],
    tensorrt: str | None,
    gpus: list[GpuFacts],
    builds: list[str],
    runs: list[str],
) -> None:
    modules(*installed, tensorrt=tensorrt)
    targets = target_facts(gpus)
    assert [target.name for target in targets] == [
        "onnxruntime",
        "onnxruntime-cuda",
        "tensorrt-rtx",
        "tensorrt",
    ]
    assert [target.name for target in targets if target.builds] == builds
    assert [target.name for target in targets if target.runs] == runs
    assert all(target.advice for target in targets if not target.runs and target.name != "onnxruntime")


def test_this_machine_is_described() -> None:
    facts = machine_facts()
    assert facts.num_cores >= 1
    assert 0 < memory_bytes() == facts.memory_bytes
    assert {"torch", "onnxruntime", "pytest"} <= {package.name for package in facts.packages}
    assert {target.name: target.runs for target in facts.targets}["onnxruntime"]
