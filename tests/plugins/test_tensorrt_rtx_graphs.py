"""TensorRT-RTX compiles whole canonical graphs, with no more done to them than choosing bodies and a cache capacity."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from examples.random_checkpoint import write_checkpoint
from export.exporter import export_checkpoint
from plugins.tensorrt_rtx import choose_bodies

REPOSITORY = Path(__file__).resolve().parents[2]
CAPACITY = 1024
# Smallest, typical and largest of each dynamic dim.
SIZES = {
    "vision": {"P": (4, 1024, 16_384), "N + 1": (2, 5, 33), "M": (4, 256, 16_384)},
    "decoder": {"B": (1, 2, 8), "S": (1, 64, 1024), "V": (1, 64, 4096), "Q": (1, 1, 4)},
}


def request(directory: Path, name: str) -> dict[str, object]:
    model = onnx.load(directory / f"{name}.onnx", load_external_data=False)
    choose_bodies(model)
    shapes = {}
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        for dim in dims:
            if dim.dim_param == "L":
                dim.dim_value = CAPACITY
        dynamic = [dim.dim_param for dim in dims if dim.dim_param]
        if dynamic and value in model.graph.input:
            choices = ({dim: sizes[i] for dim, sizes in SIZES[name].items()} for i in range(3))
            shapes[value.name] = [
                [dim.dim_value or choice[dim.dim_param] for dim in dims] for choice in choices
            ]
    path = directory / f"{name}.rtx.onnx"
    path.write_bytes(model.SerializeToString())
    return {"path": str(path), "shapes": shapes}


@pytest.mark.tensorrt
def test_rtx_compiles_the_exported_vision_and_decoder_graphs_in_bfloat16(tmp_path):
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX: pip install 'qv-export[rtx]'")
    write_checkpoint(tmp_path / "checkpoint", num_hidden_layers=2, vision_depth=2, dtype="bfloat16")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", dtype="bfloat16")
    requests = [request(tmp_path / "bundle", name) for name in SIZES]
    result = subprocess.run(
        [sys.executable, "-m", "tests.plugins.rtx_build", json.dumps(requests)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    vision, decoder = json.loads(result.stdout.splitlines()[-1])
    assert vision["errors"] == decoder["errors"] == []
    assert vision["inputs"] == ["patches", "positions", "cu_seqlens", "segment_range"]
    assert {"write_index", "kv_lengths", "past_key.0", "past_value.1"} <= set(decoder["inputs"])
    assert min(vision["bytes"], decoder["bytes"]) > 100_000
