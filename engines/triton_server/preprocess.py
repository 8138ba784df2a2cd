"""What do the two graphs take for a chat request? A Python-backend model: messages in, the graphs' tensors out.

For those who compose the parts themselves. The checks are the chat model's. No torch.
"""

from typing import Any

import numpy as np
import triton_python_backend_utils as backend  # the server's own module, importable inside of it alone

from engines.runtime.generation_config import checkpoint_generation_config
from engines.triton_server.fetching import Fetcher, FetchPolicy
from engines.triton_server.interface import PREPROCESS_INPUTS
from engines.triton_server.loading import Arguments, bundle_directory, read_settings, read_tensors
from engines.triton_server.requests import parse_request
from export.errors import UserError
from export.processor.processor import ModelInputs, Processor


class TritonPythonModel:
    """What Triton loads."""

    def initialize(self, args: Arguments) -> None:
        """Read the tokenizer, the chat template and the picture settings."""
        settings, directory = read_settings(args), bundle_directory(args)
        self._processor = Processor.from_directory(directory)
        self._defaults = checkpoint_generation_config(directory)
        self._limits = settings.request_limits
        self._fetcher = (
            Fetcher(FetchPolicy(frozenset(settings.allowed_hosts))) if settings.allowed_hosts else None
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request; a request that is wrong has an error of its own."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            tensors = read_tensors(request, PREPROCESS_INPUTS)
            chat = parse_request(tensors, self._processor, self._defaults, self._limits, self._fetcher)
        except UserError as error:
            return backend.InferenceResponse(
                error=backend.TritonError(str(error), backend.TritonError.INVALID_ARG)
            )
        return backend.InferenceResponse(
            output_tensors=[
                backend.Tensor(name, np.ascontiguousarray(array))
                for name, array in _graph_inputs(chat.request.inputs).items()
            ]
        )


def _graph_inputs(inputs: ModelInputs) -> dict[str, Any]:
    """By the names of the graphs' contract."""
    return {
        "patches": inputs.patches,
        "positions": inputs.positions,
        "cu_seqlens": inputs.cu_seqlens,
        "segment_range": np.arange(np.diff(inputs.cu_seqlens).max(initial=0), dtype=np.int32),
        "token_ids": inputs.token_ids[None],
        "position_ids": inputs.position_ids[:, None],
    }
