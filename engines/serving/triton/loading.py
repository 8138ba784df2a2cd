"""What all models of a repository do alike: find settings, bundle and engine, and read requests."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as backend  # the server's own module, importable inside of it alone

from engines.open import choose_engine, open_chosen
from engines.runtime.scheduler_limits import TryLaterError
from engines.serving.chat import CancelledError, ChatRequest, Receipt
from engines.serving.media.fetching import Fetcher, FetchPolicy
from engines.serving.media.pool import MediaPool
from engines.serving.room import Room
from engines.serving.settings import PARAMETER, ServerSettings
from engines.serving.triton.interface import ServerTensor
from engines.serving.triton.requests import guide_maker, parse_request
from engines.session import Engine
from engines.store.compatibility import this_machine
from export.bundle import open_bundle
from export.checkpoint.generation_config import checkpoint_generation_config
from export.errors import UserError
from export.processor.media.decode import LocalReader, MediaReader
from export.processor.processor import Processor

BUNDLE_DIRECTORY = "bundle"
FAULT = "a fault of the server; its log says more"
"""All that a client learns of an error that is not its own."""

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


def open_served_engine(directory: Path, settings: ServerSettings) -> Engine:
    """What computes: the engine that the settings name, or the default backend.

    Raises:
        UserError: the bundle changed since it was written, or this machine cannot load the engine; what differs.
        EngineError: the engine's own library refuses it, or its ranks do not start.
    """
    bundle = open_bundle(directory)
    chosen = choose_engine(
        bundle,
        settings.engine,
        num_slots=settings.num_slots,
        capacity=settings.capacity,
        machine=this_machine(),
    )
    return open_chosen(
        bundle,
        chosen,
        num_slots=settings.num_slots,
        capacity=settings.capacity,
        num_threads=settings.num_threads,
        num_ranks=settings.num_ranks,
        hostfile=settings.hostfile,
    )


def read_tensors(request: Any, inputs: Sequence[ServerTensor]) -> dict[str, npt.NDArray[Any]]:
    """The inputs that the client gave. Copied: the request's memory is the server's again after `execute`."""
    found = {spec.name: backend.get_input_tensor_by_name(request, spec.name) for spec in inputs}
    return {name: np.array(tensor.as_numpy()) for name, tensor in found.items() if tensor is not None}


def parameter_names(request: Any) -> list[str]:
    """What the client asks for beside the inputs: JSON keys that are none, or gRPC's parameters.

    Raises:
        UserError: their names are no text, which the server hands on as it came.
    """
    try:
        return list(json.loads(request.parameters() or "{}"))
    except ValueError:  # bytes that are no UTF-8, or what they make of the JSON
        raise UserError("The names of the request's fields must be UTF-8.") from None


def _num_bytes(tensor: npt.NDArray[Any]) -> int:
    return sum(map(len, tensor.flat)) if tensor.dtype == np.object_ else tensor.nbytes


class RequestReader:
    """Checks chat requests for one bundle under one server's settings."""

    def __init__(self, directory: Path, settings: ServerSettings) -> None:
        self.processor = Processor.from_directory(directory).with_budget(settings.budget)
        self._defaults = checkpoint_generation_config(directory)
        self._limits = settings.request_limits
        hosts = frozenset(settings.allowed_hosts)
        self._fetcher = Fetcher(FetchPolicy(hosts)) if hosts else None
        self._room = Room(settings.max_held_bytes)
        self._pool = MediaPool(settings.media)
        self._guides = guide_maker(self.processor, self._defaults)

    def read(
        self,
        tensors: Mapping[str, npt.NDArray[Any]],
        parameters: Iterable[str] = (),
        receipt: Receipt | None = None,
    ) -> ChatRequest:
        """What a client asks; its media are decoded in processes of their own.

        Args:
            tensors: of the request.
            parameters: names of what it asks for beside them.
            receipt: when it came, and whether its client still waits; None: now, and always.

        Raises:
            UserError: it may not run; all problems at once.
            CancelledError: the client left meanwhile.
            NoRoomError: other requests hold too much.
        """
        receipt = receipt or Receipt()

        def make_reader(local: LocalReader, seconds: float) -> MediaReader:
            return self._pool.reader(local, time.monotonic() + seconds, receipt.is_cancelled)

        with self._room.held() as held:
            held.grow_to(sum(map(_num_bytes, tensors.values())))
            return parse_request(
                tensors,
                self.processor,
                self._defaults,
                self._limits,
                self._fetcher,
                make_reader,
                receipt,
                parameters,
                self._guides,
                self._room,
            )

    def close(self) -> None:
        """End the processes that decode media."""
        self._pool.close()


def log_fault(error: BaseException) -> None:
    """Say in the server's log what the client is not told."""
    backend.Logger.log_error(f"a request failed: {type(error).__name__}: {error}")


def respond_to_each(
    requests: Sequence[Any], answer: Callable[[Any], Mapping[str, npt.NDArray[Any]]]
) -> list[Any]:
    """One response for each request: the tensors of `answer`, or an error that is that request's alone."""
    return [_response(request, answer) for request in requests]


def _response(request: Any, answer: Callable[[Any], Mapping[str, npt.NDArray[Any]]]) -> Any:
    try:
        tensors = answer(request).items()
    except UserError as error:
        return _refusal(str(error), backend.TritonError.INVALID_ARG)
    except TryLaterError as error:
        return _refusal(str(error), backend.TritonError.UNAVAILABLE)
    except CancelledError:
        return _refusal("cancelled by the client", backend.TritonError.CANCELLED)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it ends this request alone
        log_fault(error)
        return _refusal(FAULT, backend.TritonError.INTERNAL)
    outputs = [backend.Tensor(name, np.ascontiguousarray(array)) for name, array in tensors]
    return backend.InferenceResponse(output_tensors=outputs)


def _refusal(message: str, code: Any) -> Any:
    return backend.InferenceResponse(error=backend.TritonError(message, code))
