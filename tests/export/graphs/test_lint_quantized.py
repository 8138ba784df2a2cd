from collections import Counter

import onnx
import onnxruntime as ort
import pytest

from export.graphs.lint import lint
from tests.support.quantized_traps import QUANTIZED_TRAPS

BY_ONNX_RUNTIME = {name: trap for name, trap in QUANTIZED_TRAPS.items() if trap.expanded_by == "onnxruntime"}


@pytest.mark.parametrize("trap", QUANTIZED_TRAPS.values(), ids=QUANTIZED_TRAPS)
def test_each_trap_is_found(trap):
    findings = lint(trap.model())
    assert any(trap.finding in finding for finding in findings), findings


@pytest.mark.parametrize("trap", BY_ONNX_RUNTIME.values(), ids=BY_ONNX_RUNTIME)
def test_onnx_runtime_still_expands_what_the_lint_says(trap, tmp_path):
    onnx.save(trap.model(), tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(tmp_path / "model.onnx", options)
    ops = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert ops["MatMul"] + ops["FusedMatMul"], ops
    assert ops["DequantizeLinear"], ops
