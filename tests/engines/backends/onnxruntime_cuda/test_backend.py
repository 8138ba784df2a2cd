"""What the target says of itself where it cannot run, and which GPU is meant."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines.backends import BACKENDS
from engines.backends.device_name import device_index
from engines.backends.onnxruntime_cuda import backend as backend_module
from engines.backends.onnxruntime_cuda.backend import provider_problem, require_gpu
from engines.gpus import GpuFacts
from export.errors import UserError

CUDA = BACKENDS["onnxruntime-cuda"]


def test_a_gpu_is_named_as_torch_names_it():
    assert [device_index(name) for name in (None, "cuda", "cuda:0", "cuda:12")] == [0, 0, 0, 12]


@pytest.mark.parametrize(
    "name", ["gpu", "cuda:", "cuda:-1", "cuda:one", "cpu", "", "cuda:1 ", "cuda:" + "9" * 400]
)
def test_what_is_no_name_of_a_gpu_is_refused_with_what_is(name):
    with pytest.raises(UserError, match="must be cuda, or cuda:1 for the second"):
        device_index(name)


def test_targets_that_do_not_choose_refuse_a_device_by_name():
    with pytest.raises(UserError, match="--device cuda:1 is for GPUs"):
        BACKENDS["onnxruntime"].open(None, None, num_slots=1, capacity=1, device="cuda:1")  # type: ignore[arg-type]


def test_the_package_is_asked_for_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(backend_module, "installed_version", {"onnxruntime-gpu": None}.get)
    said = CUDA.missing()
    assert said is not None
    assert "onnxruntime-gpu, which is not installed" in said
    assert "takes the place of onnxruntime" in said
    assert "onnxruntime-gpu[cuda,cudnn]" in said


T4, L4 = (
    GpuFacts(name, "580.65.06", sm, 16_000) for name, sm in (("Tesla T4", (7, 5)), ("NVIDIA L4", (8, 9)))
)


@pytest.mark.parametrize(
    ("dtype", "index", "gpus", "says"),
    [
        ("bfloat16", 0, [T4], "Tesla T4 is SM75, which does not compute in bfloat16: that takes SM80"),
        ("bfloat16", 1, [L4, T4], "--dtype float16 or float32"),
        ("float16", 2, [L4, T4], "lists 2 here, from cuda:0 to cuda:1"),
    ],
)
def test_a_gpu_that_cannot_is_refused_before_anything_is_loaded(dtype, index, gpus, says):
    with pytest.raises(UserError, match=says):
        require_gpu(dtype, index, gpus)


@pytest.mark.parametrize(
    ("dtype", "index", "gpus"), [("bfloat16", 1, [T4, L4]), ("float16", 0, [T4]), ("bfloat16", 0, [])]
)
def test_a_gpu_that_can_and_one_that_nobody_knows_are_let_through(dtype, index, gpus):
    require_gpu(dtype, index, gpus)


@pytest.fixture
def fake_onnxruntime(monkeypatch, tmp_path) -> Path:
    """A module `onnxruntime` in a folder of the test's, without a provider."""
    folder = tmp_path / "onnxruntime"
    (folder / "capi").mkdir(parents=True)
    (folder / "__init__.py").touch()
    module = SimpleNamespace(__file__=str(folder / "__init__.py"), preload_dlls=lambda: None)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setattr(backend_module, "installed_version", {"onnxruntime-gpu": "1.31.1"}.get)
    monkeypatch.setattr(backend_module, "has_module", lambda name: True)
    return folder / "capi"


def test_a_module_of_the_other_package_is_told_from_missing_libraries(fake_onnxruntime):
    problem = provider_problem()
    assert problem is not None
    assert "the one installed last" in problem


def test_what_the_provider_lacks_is_found_by_loading_it_and_quoted(fake_onnxruntime):
    (fake_onnxruntime / "libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    said = CUDA.missing()
    assert said is not None
    assert "libonnxruntime_providers_shared.so" in said, "the first that cannot be loaded"
    assert "CUDA 13 and cuDNN 9" in said
    assert CUDA.advice(()) == said
