"""What do pictures look like to the decoder? A Python-backend model over ONNX Runtime: patches in, visual tokens out.

For those who compose the parts themselves, on a CPU; on a GPU the engine is served by Triton's TensorRT backend. No
torch.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from engines.backends import default_backend
from engines.triton_server.interface import vision_inputs
from engines.triton_server.loading import (
    Arguments,
    bundle_directory,
    read_settings,
    read_tensors,
    respond_to_each,
)
from export.bundle import open_bundle
from export.errors import UserError
from export.inputs import VisionInputs


class TritonPythonModel:
    """What Triton loads."""

    def initialize(self, args: Arguments) -> None:
        """Open the bundle's vision graph."""
        directory = bundle_directory(args)
        bundle = open_bundle(directory)
        config = bundle.config
        self._patches_per_token = config.vision.patches_per_token
        self._inputs = vision_inputs(config, "float32")
        self._vision = default_backend().open_vision(
            bundle, None, num_threads=read_settings(args).num_threads
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request; a request that is wrong has an error of its own."""
        return respond_to_each(requests, self._encode)

    def _encode(self, request: Any) -> dict[str, npt.NDArray[Any]]:
        tensors = read_tensors(request, self._inputs)
        patches, positions, cu_seqlens = (tensors[name] for name in ("patches", "positions", "cu_seqlens"))
        require_sound(patches, positions, cu_seqlens, self._patches_per_token)
        return {"visual_embeds": self._vision.encode(VisionInputs.of(patches, positions, cu_seqlens))}


def require_sound(
    patches: npt.NDArray[Any],
    positions: npt.NDArray[Any],
    cu_seqlens: npt.NDArray[Any],
    patches_per_token: int,
) -> None:
    """Keep tensors that a stranger sent from the graph where it would read past their ends.

    Shapes but the dynamic sizes, and dtypes, are the server's to check: the configuration declares them.

    Raises:
        UserError: what is wrong with them.
    """
    lengths = np.diff(cu_seqlens)
    if positions.shape[1] != len(patches):
        raise UserError(f"positions are of {positions.shape[1]} patches, and patches has {len(patches)}.")
    if not len(lengths) or cu_seqlens[0] != 0 or cu_seqlens[-1] != len(patches):
        raise UserError(f"cu_seqlens must run from 0 to the {len(patches)} patches.")
    if (lengths <= 0).any() or (lengths % patches_per_token).any():
        raise UserError(
            f"cu_seqlens must rise by multiples of {patches_per_token}, the patches of one visual token."
        )
    if (positions < 0).any() or (positions >= len(patches)).any():
        raise UserError("positions must be rows and columns of patches, from 0 on.")
