"""Hands build options, shapes and the output file to TensorRT's builder."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from engines.backends.facts import ShapeRange
from engines.backends.tensorrt.api import (
    Bindings,
    Builder,
    IBuilderConfig,
    INetworkDefinition,
    RtxBindings,
    RtxBuilderConfig,
)
from engines.backends.tensorrt.build.profiles import Profile, shape_ranges
from engines.backends.tensorrt.log import BuildLog
from engines.backends.tensorrt.options import BuildOptions
from engines.session import EngineError
from export.contract import GraphContract
from export.files.atomic import replacing_file

_COMPILERS_CHECK = "MyelinCheckException"
"""What its errors carry where TensorRT's compiler meets a network that it cannot compile, as opposed to a want of
memory or space."""


class NoKernelError(EngineError):
    """TensorRT has no way to compute the network as it is; another body of an op may help."""


def apply_options(trt: Bindings, config: IBuilderConfig, options: BuildOptions) -> None:
    """Set everything but shapes on an `IBuilderConfig`."""
    # Names of layers and their tensors in the engine, for its inspector; costs nothing at run time.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.target == "tensorrt-rtx":
        _set_architectures(cast(RtxBindings, trt), cast(RtxBuilderConfig, config), options.sm)
    else:
        level = options.hardware_compatibility.upper()
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)


def _set_architectures(trt: RtxBindings, config: RtxBuilderConfig, sm: Sequence[int]) -> None:
    config.num_compute_capabilities = len(sm)
    for i, one in enumerate(sm):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{one}"), i):
            raise EngineError(f"{trt.__name__} {trt.__version__} refuses the architecture SM{one}")


def add_profiles(
    builder: Builder, config: IBuilderConfig, contract: GraphContract, profiles: Sequence[Profile]
) -> Mapping[str, tuple[ShapeRange, ...]]:
    """Add the optimization profiles; gives each input's shapes as TensorRT's profiles hold them afterwards."""
    shapes: dict[str, list[ShapeRange]] = {}
    for profile in profiles:
        optimization_profile = builder.create_optimization_profile()
        for name, wanted in shape_ranges(contract, profile):
            optimization_profile.set_shape(name, wanted.minimum, wanted.optimum, wanted.maximum)
            held = [tuple(dims) for dims in optimization_profile.get_shape(name)]
            shapes.setdefault(name, []).append(ShapeRange(*held))
        if config.add_optimization_profile(optimization_profile) < 0:
            raise EngineError(f"TensorRT refuses the optimization profile {dict(profile)}")
    return {name: tuple(ranges) for name, ranges in shapes.items()}


@contextmanager
def timing_cache(config: IBuilderConfig, path: Path | None) -> Iterator[None]:
    """Let a build read kernel times from a file, and put its own there when it ends well.

    Two builds at once keep the times of the one that ends last: a loss of time only.
    """
    if path is None:
        yield
        return
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    # TensorRT checks the cache's device and version itself, and starts an empty one where they differ.
    config.set_timing_cache(cache, ignore_mismatch=False)
    yield
    with replacing_file(path) as file:
        file.write(config.get_timing_cache().serialize())


def write_engine(
    trt: Bindings,
    builder: Builder,
    network: INetworkDefinition,
    config: IBuilderConfig,
    output: Path,
    log: BuildLog,
) -> None:
    """Build, and write the serialized engine in pieces: as a whole it would stand in memory beside what it is made of.

    Raises:
        NoKernelError: TensorRT's compiler has no way to compute something.
        EngineError: TensorRT fails otherwise; its errors are quoted.
        OSError: the file cannot be written, e.g. for want of space.
    """
    with output.open("wb", buffering=0) as file:
        writer = _make_writer(trt, file)
        is_built = builder.build_serialized_network_to_stream(network, config, writer)
        if writer.error is not None:
            raise writer.error
        if not is_built:
            said = "\n- ".join(log.errors) or "it gives no reason"
            kind = NoKernelError if _COMPILERS_CHECK in said else EngineError
            raise kind(f"{trt.__name__} {trt.__version__} cannot build the engine:\n- {said}")
        os.fsync(file.fileno())


def _make_writer(trt: Bindings, file: IO[bytes]) -> Any:
    class Writer(trt.IStreamWriter):  # type: ignore[misc, name-defined]
        error: OSError | None = None

        def __init__(self) -> None:
            super().__init__()

        def write(self, data: bytes) -> int:
            """Gives how much was written; less ends the build. An exception must not cross TensorRT."""
            try:
                pending = memoryview(data)
                while pending:
                    pending = pending[file.write(pending) :]
            except OSError as error:
                self.error = error
                return 0
            return len(data)

    return Writer()
