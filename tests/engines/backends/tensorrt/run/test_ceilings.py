"""A copy and a product on the fake runtime; and TensorRT-RTX builds the product on a CPU."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.backends.tensorrt.run import ceilings
from engines.backends.tensorrt.run.ceilings import copy_ceiling, matmul_ceiling
from engines.backends.tensorrt.run.cuda import Array
from tests.engines.backends.tensorrt.fake_runtime import HostDevice, fake_bindings

SIDE = 16


class Product:
    """An engine of `a` times `b`, and its one context."""

    num_io_tensors, num_optimization_profiles, streamable_weights_size = 3, 1, 0

    def __init__(self, device: HostDevice) -> None:
        self.device, self.num_calls = device, 0
        self.addresses: dict[str, int] = {}

    def get_tensor_name(self, index):
        return "aby"[index]

    def get_tensor_mode(self, name):
        return SimpleNamespace(name="OUTPUT" if name == "y" else "INPUT")

    def get_tensor_dtype(self, _name):
        return SimpleNamespace(name="FLOAT")

    def get_tensor_shape(self, _name):
        return (SIDE, SIDE)

    def get_tensor_profile_shape(self, _name, _profile):
        return [(SIDE, SIDE)] * 3

    def get_device_memory_size_for_profile_v2(self, _profile):
        return 0

    def create_execution_context(self, _strategy):
        return self

    def set_optimization_profile_async(self, profile, _stream):
        return profile == 0

    def set_input_shape(self, name, shape):
        return name in "ab" and shape == (SIDE, SIDE)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def update_device_memory_size_for_shapes(self):
        return 0

    def execute_async_v3(self, _stream):
        self.num_calls += 1
        a, b, y = (self._array(name) for name in "aby")
        y[:] = a @ b
        return True

    def _array(self, name) -> Array:
        return self.device.view(self.addresses[name], 4 * SIDE * SIDE).view(np.float32).reshape(SIDE, SIDE)


def test_a_copy_and_a_product_are_counted_and_leave_no_memory_taken(monkeypatch):
    told = []

    def once(*arguments):
        told.append(arguments)
        arguments[2]()

    monkeypatch.setattr(ceilings, "ceiling", once)
    device = HostDevice()
    copy_ceiling(device, 4096)
    engine: Any = Product(device)
    matmul_ceiling(fake_bindings(), engine, device)
    (copied, copied_bytes, _, _), (product, operations, _, how) = told
    assert (copied, product) == ("copy", "matmul")
    assert copied_bytes == 10 * 2 * 4096
    assert operations == 10 * 2 * SIDE**3
    assert engine.num_calls == 10
    assert f"{SIDE} x {SIDE}, float32" in how
    assert not device.memory


@pytest.mark.tensorrt
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tensorrt_rtx_builds_the_product_on_a_cpu(tmp_path, dtype):
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX: pip install 'qv-export[rtx]'")
    from engines.backends.tensorrt.build.matmul import build_matmul
    from engines.backends.tensorrt.library import load_bindings
    from engines.backends.tensorrt.options import BuildOptions

    path = tmp_path / "matmul.engine"
    build_matmul(load_bindings("tensorrt-rtx"), BuildOptions("tensorrt-rtx", (89,)), dtype, path, 256)
    assert path.stat().st_size > 1000
