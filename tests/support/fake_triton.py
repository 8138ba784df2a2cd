"""Stands in for Triton's own Python module, so that a model's code runs here without a server.

Only what the models use, and as strict: a tensor holds an array, a response ends once.
"""

import importlib
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

MODELS = "engines.serving.triton"
_NAMES = ("loading", "model", "preprocess", "vision_encoder")


class TritonError(Exception):
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.message, self.code = message, code


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} holds no array")
        self.name, self._array = name, array

    def as_numpy(self) -> Any:
        return self._array


class Response:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.tensors = {tensor.name: tensor.as_numpy() for tensor in output_tensors or []}
        self.error = error

    def text(self, name: str) -> str:
        return str(self.tensors[name][0].decode())


class Sender:
    """What a model answers through; `wait` gives all its responses."""

    def __init__(self) -> None:
        self.responses: list[Response] = []
        self.cancelled = False
        self._ended = threading.Event()

    def is_cancelled(self) -> bool:
        return self.cancelled

    def send(self, response: Response | None = None, flags: int = 0) -> None:
        assert not self._ended.is_set(), "a response after the last"
        if response is not None:
            self.responses.append(response)
        if flags:
            self._ended.set()

    def wait(self, seconds: float = 30) -> list[Response]:
        assert self._ended.wait(seconds), "never answered"
        return self.responses


class Request:
    """Arrays by input name, and request parameters as the generate extension makes them."""

    def __init__(self, tensors: Mapping[str, Any], parameters: str = "{}") -> None:
        self.tensors, self._parameters = tensors, parameters
        self.sender = Sender()

    def get_response_sender(self) -> Sender:
        return self.sender

    def is_cancelled(self) -> bool:
        return self.sender.cancelled

    def parameters(self) -> str:
        return self._parameters


class Logger:
    lines: list[str] = []  # noqa: RUF012 - as in Triton's module, the class is the logger

    @classmethod
    def log_info(cls, line: str) -> None:
        cls.lines.append(line)

    log_error = log_warn = log_info


class MetricFamily:
    COUNTER, GAUGE = "counter", "gauge"

    def __init__(self, **_: Any) -> None:
        pass

    def Metric(self, **_: Any) -> "MetricFamily":  # noqa: N802 - Triton's name
        return self

    def set(self, _: float) -> None:
        pass

    def increment(self, _: float) -> None:
        pass


def _module() -> ModuleType:
    module: Any = ModuleType("triton_python_backend_utils")
    module.TritonError, module.Tensor, module.InferenceResponse = TritonError, Tensor, Response
    module.Logger, module.MetricFamily = Logger, MetricFamily
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    module.get_input_tensor_by_name = lambda request, name: (
        Tensor(name, request.tensors[name]) if name in request.tensors else None
    )
    return module


@contextmanager
def imported_models() -> Iterator[ModuleType]:
    """`engines.serving.triton` with its models, which can be imported inside of a server alone."""
    names = ["triton_python_backend_utils", *(f"{MODELS}.{name}" for name in _NAMES)]
    before = {name: sys.modules.pop(name, None) for name in names}
    sys.modules["triton_python_backend_utils"] = _module()
    Logger.lines.clear()
    try:
        for name in _NAMES:
            importlib.import_module(f"{MODELS}.{name}")
        yield importlib.import_module(MODELS)
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
