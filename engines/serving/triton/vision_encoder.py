"""The vision encoder as a Python-backend model over ONNX Runtime: patches in, visual tokens out.

For those who compose the parts themselves, on a CPU; on a GPU the engine is served by Triton's TensorRT backend. No
torch.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from engines.backends import default_backend
from engines.serving.triton.interface import vision_inputs
from engines.serving.triton.loading import (
    Arguments,
    bundle_directory,
    parameter_names,
    read_settings,
    read_tensors,
    respond_to_each,
)
from engines.serving.triton.requests import refuse_parameters
from export.bundle import open_bundle
from export.errors import UserError
from export.inputs import VisionInputs

MAX_SEGMENTS = 2048
"""More than 32 pictures and four videos of 768 frames make."""


class TritonPythonModel:
    """What Triton loads."""

    def initialize(self, args: Arguments) -> None:
        """Open the bundle's vision graph."""
        directory, settings = bundle_directory(args), read_settings(args)
        bundle = open_bundle(directory)
        config = bundle.config
        self._patches_per_token = config.vision.patches_per_token
        self._inputs = vision_inputs(config, "float32")
        # No decoder could take more visual tokens than its context holds.
        self._max_patches = settings.capacity * self._patches_per_token
        self._vision = default_backend().open_vision(bundle, None, num_threads=settings.num_threads)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request; a request that is wrong has an error of its own."""
        return respond_to_each(requests, self._encode)

    def _encode(self, request: Any) -> dict[str, npt.NDArray[Any]]:
        refuse_parameters(parameter_names(request), self._inputs)
        tensors = read_tensors(request, self._inputs)
        patches, positions, cu_seqlens = (tensors[name] for name in ("patches", "positions", "cu_seqlens"))
        require_sound(patches, positions, cu_seqlens, self._patches_per_token, max_patches=self._max_patches)
        return {"visual_embeds": self._vision.encode(VisionInputs.of(patches, positions, cu_seqlens))}


def require_sound(
    patches: npt.NDArray[Any],
    positions: npt.NDArray[Any],
    cu_seqlens: npt.NDArray[Any],
    patches_per_token: int,
    *,
    max_patches: int | None = None,
    max_segments: int = MAX_SEGMENTS,
) -> None:
    """Keep tensors that a stranger sent from the graph where it would read past their ends.

    Args:
        patches: [P, patch_values].
        positions: [2, P].
        cu_seqlens: [N + 1], of any integers: differences are taken where they cannot wrap.
        patches_per_token: what segments are multiples of.
        max_patches: of one call; None: any number.
        max_segments: of one call.

    Shapes but the dynamic sizes, and dtypes, are the server's to check: the configuration declares them.

    Raises:
        UserError: what is wrong with them.
    """
    if max_patches is not None and len(patches) > max_patches:
        raise UserError(f"patches has {len(patches)} rows, this server takes {max_patches} in one call.")
    if len(cu_seqlens) - 1 > max_segments:
        raise UserError(
            f"cu_seqlens has {len(cu_seqlens) - 1} segments, this server takes {max_segments} in one call."
        )
    offsets = cu_seqlens.astype(np.int64)
    lengths = offsets[1:] - offsets[:-1]
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
