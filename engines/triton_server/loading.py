"""What do all models of a repository do alike? Find their settings, their bundle and its engine, and read a request."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as backend  # the server's own module, importable inside of it alone

from engines.session import DecoderSession, VisionSession
from engines.triton_server.interface import ServerTensor
from engines.triton_server.settings import PARAMETER, ServerSettings

BUNDLE_DIRECTORY = "bundle"

Arguments = Mapping[str, str]
"""What Triton gives to a model's `initialize`."""


def read_settings(args: Arguments) -> ServerSettings:
    """The settings in the model's configuration.

    Raises:
        UserError: they mean nothing.
    """
    config = json.loads(args["model_config"])
    return ServerSettings.from_json(config["parameters"][PARAMETER]["string_value"])


def bundle_directory(args: Arguments) -> Path:
    """The bundle, which stands in the model's version directory."""
    return Path(args["model_repository"]) / args["model_version"] / BUNDLE_DIRECTORY


def open_engine(directory: Path, settings: ServerSettings) -> tuple[VisionSession, DecoderSession]:
    """The sessions that compute: the TensorRT engine that the settings name, or ONNX Runtime.

    Raises:
        UserError: the bundle changed since it was written, or this machine cannot load the engine; what differs.
        EngineError: the engine's own library refuses it.
    """
    if settings.engine is None:
        from engines.onnxruntime.session import open_sessions  # noqa: PLC0415 - each brings its own libraries

        return open_sessions(
            directory,
            num_slots=settings.num_slots,
            capacity=settings.capacity,
            num_threads=settings.num_threads,
        )
    from engines.tensorrt.opening import open_sessions as open_tensorrt  # noqa: PLC0415

    return open_tensorrt(directory, settings.engine, num_slots=settings.num_slots)


def read_tensors(request: Any, inputs: Sequence[ServerTensor]) -> dict[str, npt.NDArray[Any]]:
    """The inputs that the client gave. Copied: the request's memory is the server's again after `execute`."""
    found = {spec.name: backend.get_input_tensor_by_name(request, spec.name) for spec in inputs}
    return {name: np.array(tensor.as_numpy()) for name, tensor in found.items() if tensor is not None}
