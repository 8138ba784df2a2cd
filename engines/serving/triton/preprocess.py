"""Preprocessing as a Python-backend model: messages in, the two graphs' tensors out.

For those who compose the parts themselves. The checks are the chat model's. No torch.
"""

from dataclasses import replace
from typing import Any

import numpy.typing as npt

from engines.serving.chat import Receipt
from engines.serving.settings import ServerSettings
from engines.serving.triton.interface import PREPROCESS_INPUTS
from engines.serving.triton.loading import (
    Arguments,
    RequestReader,
    bundle_directory,
    parameter_names,
    read_settings,
    read_tensors,
    respond_to_each,
)
from engines.serving.triton.requests import refuse_parameters

MAX_SECONDS = 30.0
"""For one request, and what it has where it asks for no less: an instance answers one at a time."""


def own_settings(settings: ServerSettings) -> ServerSettings:
    """The chat model's bounds, for a process that has one request at a time and holds up the next one meanwhile."""
    return replace(
        settings,
        requests=replace(
            settings.requests, timeout_seconds=min(settings.requests.timeout_seconds, MAX_SECONDS)
        ),
        media=replace(settings.media, num_workers=1),
    )


class TritonPythonModel:
    """What Triton loads."""

    def initialize(self, args: Arguments) -> None:
        """Read the tokenizer, the chat template and the picture settings."""
        self._reader = RequestReader(bundle_directory(args), own_settings(read_settings(args)))

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request; a request that is wrong has an error of its own."""
        return respond_to_each(requests, self._graph_inputs)

    def finalize(self) -> None:
        """End the processes that decode media."""
        self._reader.close()

    def _graph_inputs(self, request: Any) -> dict[str, npt.NDArray[Any]]:
        """By the names of the graphs' contract."""
        refuse_parameters(parameter_names(request), PREPROCESS_INPUTS)
        receipt = Receipt(is_cancelled=request.is_cancelled)
        tensors = read_tensors(request, PREPROCESS_INPUTS)
        inputs = self._reader.read(tensors, receipt=receipt).request.inputs
        return {
            **vars(inputs.vision),
            "token_ids": inputs.token_ids[None],
            "position_ids": inputs.position_ids[:, None],
        }
