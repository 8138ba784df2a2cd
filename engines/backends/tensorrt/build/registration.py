"""The GPU that a TensorRT engine is built for, and our plugins in its building process."""

from engines.backends.tensorrt.options import BuildOptions
from engines.backends.tensorrt.run.cuda import current_sm, driver_cuda
from export.errors import UserError

_AMPERE = 80  # PTX for it runs on everything newer


def register_for_build(options: BuildOptions) -> tuple[int, ...]:
    """Register the plugins for this machine's GPU and give its architecture.

    Raises:
        UserError: no GPU, or another one than was asked for: TensorRT builds for the GPU at hand.
    """
    from plugins.tensorrt.register import register_plugins as register  # noqa: PLC0415  (brings torch and Triton)

    here = current_sm()
    if options.sm not in {(), (here,)}:
        raise UserError(
            f"TensorRT builds for the GPU at hand, SM{here}; asked was SM{options.sm[0]}.",
            "Build on such a machine, or leave --sm away.",
        )
    register(_AMPERE if options.hardware_compatibility == "ampere_plus" else here, driver_cuda())
    return (here,)
