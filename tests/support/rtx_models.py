"""What TensorRT-RTX makes of ONNX models. Runs in a process of its own: no plugin may be registered there.

python -m tests.support.rtx_models < requests.json
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ARCHITECTURES = (80, 89, 120)


def request(
    path: Path,
    model: onnx.ModelProto,
    shapes: Any = None,
    *,
    build: bool = True,
    engine: Path | None = None,
    sm: Sequence[int] = ARCHITECTURES,
) -> dict[str, Any]:
    """Ask for one model.

    Args:
        path: where to write it.
        shapes: input name to smallest, typical and largest shape, of one profile.
        build: False to parse only.
        engine: where to write what is built; None: nowhere.
        sm: for which architectures.
    """
    path.write_bytes(model.SerializeToString())
    return {
        "path": str(path),
        "shapes": shapes or {},
        "build": build,
        "engine": engine and str(engine),
        "sm": list(sm),
    }


def ask_rtx(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One answer a request:

    - parsed, built: how far it came; errors: what RTX said where it stopped.
    - inspected: what the engine's inspector says of its layers.
    - layers: type and first output's dtype of every layer of the network.
    - read: the network's inputs that a layer reads or that are outputs; outputs: name to shape.
    """
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX: pip install 'qv-export[rtx]'")
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.rtx_models"],
        cwd=REPOSITORY,
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    answers: list[dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])
    return answers


def _answer(trt: Any, logger: Any, log: Any, asked: dict[str, Any]) -> dict[str, Any]:
    log.start_anew()
    path = Path(asked["path"])
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes(), str(path)):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        return {"parsed": False, "built": False, "errors": errors or log.errors}
    answer = {"parsed": True, "built": False, "errors": [], **_described(network)}
    if not asked["build"]:
        return answer
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, (smallest, typical, largest) in asked["shapes"].items():
        profile.set_shape(name, smallest, typical, largest)
    config.add_optimization_profile(profile)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = len(asked["sm"])
    for i, sm in enumerate(asked["sm"]):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), i)
    engine = builder.build_serialized_network(network, config)
    if engine is not None and asked["engine"]:
        Path(asked["engine"]).write_bytes(engine)
    return answer | {
        "built": engine is not None,
        "errors": list(log.errors) if engine is None else [],
        "bytes": engine.nbytes if engine else 0,
        "inspected": log.engine_layers,
    }


def _described(network: Any) -> dict[str, Any]:
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    tensors = [layer.get_input(i) for layer in layers for i in range(layer.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    inputs = [network.get_input(i).name for i in range(network.num_inputs)]
    read = {tensor.name for tensor in (*tensors, *outputs) if tensor is not None}
    return {
        "layers": [
            [layer.type.name, layer.get_output(0).dtype.name] for layer in layers if layer.num_outputs
        ],
        "inputs": inputs,
        "read": [name for name in inputs if name in read],
        "outputs": {tensor.name: list(tensor.shape) for tensor in outputs},
    }


def _main() -> None:
    import tensorrt_rtx_bindings as trt

    from engines.backends.tensorrt.log import BuildLog, make_logger

    log = BuildLog()
    logger = make_logger(trt, log)
    answers = [_answer(trt, logger, log, asked) for asked in json.load(sys.stdin)]
    sys.stdout.write("\n" + json.dumps(answers))


if __name__ == "__main__":
    _main()
