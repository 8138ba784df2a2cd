import ast
from pathlib import Path

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
