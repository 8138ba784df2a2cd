"""ONNX Runtime's own limits on this machine, which what is measured of an engine is a share of."""

from engines.backends.ceilings import ceiling
from engines.backends.onnxruntime.ceilings import measure_ceilings


def test_a_copy_and_a_product_are_measured_with_the_threads_of_an_engine():
    found = {one.kind: one for one in measure_ceilings(1)}
    assert set(found) == {"copy", "matmul"}
    # A machine below these is none that this project runs on; one beyond them would be miscounted.
    assert 1e8 < found["copy"].per_second < 1e13
    assert 1e8 < found["matmul"].per_second < 1e15
    assert "float32" in found["matmul"].how


def test_a_rate_is_the_amount_by_the_median_call(monkeypatch):
    times = iter([0, 1, 0, 2, 0, 30, 0, 4, 0, 5])
    monkeypatch.setattr("engines.backends.ceilings.time.perf_counter", lambda: next(times))
    calls = []
    assert ceiling("copy", 8, lambda: calls.append(1), "").per_second == 2
    assert len(calls) == 6
