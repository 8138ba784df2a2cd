import ast
from pathlib import Path
from types import SimpleNamespace

import pytest

import engines.backends.tensorrt.run.cuda
from engines.backends.tensorrt.run.cuda import CudaDevice, current_sm
from engines.session import EngineError
from tests.conftest import has_gpu

runtime = pytest.importorskip(
    "cuda.bindings.runtime", reason="needs cuda-python: pip install 'cuda-python>=13'"
)
SOURCE = Path(engines.backends.tensorrt.run.cuda.__file__).read_text(encoding="utf-8")


def test_every_name_of_cudas_runtime_that_we_use_exists():
    used = {
        node.attr: node
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.Attribute) and node.attr.startswith("cuda")
    }
    enumerations = (runtime.cudaMemcpyKind, runtime.cudaStreamCaptureMode, runtime.cudaDeviceAttr)
    missing = [name for name in used if not any(hasattr(owner, name) for owner in (runtime, *enumerations))]
    assert len(used) > 15
    assert missing == []


@pytest.mark.skipif(has_gpu(), reason="shows what a machine without a driver says")
@pytest.mark.parametrize("use", [CudaDevice, current_sm])
def test_a_machine_without_a_driver_says_so_in_cudas_words(use):
    with pytest.raises(EngineError, match=r"CUDA error .*driver"):
        use()


class FakeRuntime:
    """CUDA's runtime, as far as a device needs it; it keeps the order of calls."""

    cudaStreamNonBlocking = 1  # noqa: N815  (CUDA's names)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def function(*_arguments):
            self.calls.append(name)
            if name == "cudaStreamEndCapture":
                return 901, None
            return (0, b"capture invalidated") if name == "cudaGetErrorString" else (0, 4096)

        function.__name__ = name
        return function


@pytest.fixture
def fake_runtime(monkeypatch):
    runtime = FakeRuntime()
    monkeypatch.setattr("engines.backends.tensorrt.run.cuda.load_cuda", lambda: runtime)
    return runtime


def test_a_failed_capture_ends_and_tells_its_own_cause(fake_runtime):
    device = CudaDevice()

    def fail():
        raise EngineError("the cause")

    with pytest.raises(EngineError, match=r"^the cause$"):
        device.capture(fail)
    assert fake_runtime.calls[-2:] == ["cudaStreamEndCapture", "cudaGetLastError"]
    with pytest.raises(EngineError, match="cudaStreamEndCapture: CUDA error 901, capture invalidated"):
        device.capture(lambda: None)


def test_a_device_waits_for_its_stream_before_its_memory_goes(fake_runtime):
    device = CudaDevice()
    device.allocate(16)
    fake_runtime.calls.clear()
    del device
    assert fake_runtime.calls == ["cudaSetDevice", "cudaStreamSynchronize", "cudaFree", "cudaStreamDestroy"]
