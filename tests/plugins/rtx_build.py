"""Does TensorRT-RTX build these models? Runs in its own process and prints JSON.

No plugin may be registered in this process: a plugin chosen by the parser aborts TensorRT-RTX.

    python -m tests.plugins.rtx_build '[{"path": "op.onnx", "shapes": {"q": [[min], [opt], [max]]}}]'
"""

import json
import sys
from pathlib import Path
from typing import Any

import tensorrt_rtx_bindings as trt

ARCHITECTURES = ("SM80", "SM89", "SM120")


class Logger(trt.ILogger):  # type: ignore[misc]
    """Keeps errors and warnings, prints nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity <= trt.ILogger.Severity.WARNING:
            self.lines.append(message)


def build(logger: Logger, path: Path, shapes: dict[str, list[list[int]]]) -> dict[str, Any]:
    logger.lines.clear()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes(), str(path)):  # the path says where external data lies
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        return {"stage": "parse", "errors": errors, "bytes": 0}
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, (smallest, typical, largest) in shapes.items():
        profile.set_shape(name, smallest, typical, largest)
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = len(ARCHITECTURES)
    for i, name in enumerate(ARCHITECTURES):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return {"stage": "build", "errors": logger.lines, "bytes": 0}
    inputs = [network.get_input(i).name for i in range(network.num_inputs)]
    return {"stage": "built", "errors": [], "bytes": engine.nbytes, "inputs": inputs}


if __name__ == "__main__":
    _logger = Logger()
    _results = [
        build(_logger, Path(request["path"]), request["shapes"]) for request in json.loads(sys.argv[1])
    ]
    sys.stdout.write("\n" + json.dumps(_results))
