"""Backends: what compiles and runs a bundle's graphs, one folder and one row of the registry a target."""

from engines.backends.base import Backend
from engines.backends.onnxruntime.backend import OnnxRuntimeBackend
from engines.backends.onnxruntime_cuda.backend import OnnxRuntimeCudaBackend
from engines.backends.tensorrt.backend import TensorRtBackend
from export.errors import UserError

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        OnnxRuntimeBackend(),
        OnnxRuntimeCudaBackend(),
        TensorRtBackend("tensorrt-rtx"),
        TensorRtBackend("tensorrt"),
    )
}
"""By name, in the order in which help texts list them; the first is the embedded default."""


def default_backend() -> Backend:
    """The one that needs nothing but qv-export itself."""
    return next(iter(BACKENDS.values()))


def backend_of(name: str) -> Backend:
    """A target's backend.

    Raises:
        UserError: there is none of that name.
    """
    if name not in BACKENDS:
        raise UserError(f"There is no target {name!r}.", f"Choose one of {', '.join(BACKENDS)}.")
    return BACKENDS[name]
