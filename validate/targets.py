"""Which engine does a target's name mean, can it run here, and whose noise is it allowed?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import onnxruntime as ort

from engines.backends.onnxruntime.session import open_sessions as open_onnxruntime
from engines.session import DecoderSession, VisionSession
from engines.store.build import known_plugins
from engines.store.cache import built_engines
from engines.store.compatibility import require_loadable, this_machine
from export.bundle import Bundle
from export.config import DTYPES, load_config
from export.engine_record import EngineRecord
from export.errors import UserError
from validate.bisect.probes import OnnxRuntimeTaps, TapSession
from validate.bisect.tensorrt_probes import TensorRtTaps, open_tools
from validate.cases.builtin import Profile
from validate.execution import Engine

TargetName = Literal["onnxruntime", "onnxruntime-cuda", "torch", "torch-cuda", "tensorrt-rtx", "tensorrt"]
TARGETS: tuple[TargetName, ...] = get_args(TargetName)


@dataclass(frozen=True)
class Subject:
    """An engine to validate, and the way to look inside it."""

    engine: Engine
    taps: TapSession | None
    """None: it cannot show what it computes on the way."""


def open_target(name: TargetName, bundle: Bundle, profile: Profile, dtype: str | None = None) -> Subject:
    """A target's engine for a bundle, not yet in memory.

    Args:
        name: of the target.
        bundle: whose graphs, engines or weights it runs.
        profile: the shapes to ask of it; a built engine narrows them to its own limits.
        dtype: what to compute in; None: what the target takes for this bundle.

    Raises:
        UserError: the target cannot run here, or cannot compute in `dtype`.
    """
    match name:
        case "onnxruntime":
            return _onnxruntime(bundle, profile, dtype)
        case "onnxruntime-cuda":
            raise UserError(_no_onnxruntime_cuda())
        case "torch":
            return _torch(bundle, profile, dtype, "cpu")
        case "torch-cuda":
            return _torch(bundle, profile, dtype, "cuda")
        case "tensorrt-rtx" | "tensorrt":
            return _tensorrt(name, bundle, profile, dtype)


def _onnxruntime(bundle: Bundle, profile: Profile, dtype: str | None) -> Subject:
    _require_dtype("onnxruntime", dtype, ["float32"], "ONNX Runtime on a CPU has no products of half types")
    directory = bundle.directory

    def open_engine(num_slots: int, capacity: int) -> tuple[VisionSession, DecoderSession]:
        return open_onnxruntime(directory, num_slots=num_slots, capacity=capacity)

    engine = Engine("onnxruntime-cpu", "float32", profile, open_engine)
    return Subject(engine, OnnxRuntimeTaps(directory))


def _no_onnxruntime_cuda() -> str:
    reason = (
        f"its providers here are {', '.join(ort.get_available_providers())}"
        if "CUDAExecutionProvider" not in ort.get_available_providers()
        else "qv-export opens ONNX Runtime on the CPU only"
    )
    return (
        f"--target onnxruntime-cuda cannot run: {reason}. Use --target onnxruntime, or torch-cuda for the "
        "reference on a GPU."
    )


def _torch(bundle: Bundle, profile: Profile, dtype: str | None, device: str) -> Subject:
    """The reference itself, weights in `dtype`: shows what a sound engine of that dtype does."""
    import torch  # noqa: PLC0415 - no other target needs it

    from validate.reference.sessions import ReferenceTaps, open_reference  # noqa: PLC0415 - torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--target torch-cuda needs an NVIDIA GPU and a PyTorch for CUDA. Use --target torch.")
    _require_dtype("torch", dtype, DTYPES, "the reference computes in these")
    chosen, directory = dtype or bundle.manifest.dtype, bundle.directory

    def open_engine(num_slots: int, capacity: int) -> tuple[VisionSession, DecoderSession]:
        return open_reference(directory, chosen, device, num_slots, capacity)

    engine = Engine(f"torch-{device}", chosen, profile, open_engine)
    return Subject(engine, ReferenceTaps(directory, chosen, device))


def _tensorrt(
    name: Literal["tensorrt-rtx", "tensorrt"], bundle: Bundle, profile: Profile, dtype: str | None
) -> Subject:
    graph_dtype = bundle.manifest.dtype
    _require_dtype(
        name, dtype, [graph_dtype], "its engines compute in the graphs' dtype; export the bundle anew"
    )
    record = _newest_engine(name, bundle)
    require_loadable(
        record, bundle.directory, bundle.manifest.key, this_machine(), frozenset(known_plugins())
    )

    def open_engine(num_slots: int, capacity: int) -> tuple[VisionSession, DecoderSession]:
        del capacity  # a constant of the engine, which the profile took over
        from engines.backends.tensorrt.run.open import open_sessions  # noqa: PLC0415 - CUDA

        return open_sessions(bundle.directory, record.key, num_slots=num_slots)

    taps = TensorRtTaps(load_config(bundle.directory), lambda: open_tools(bundle, record))
    return Subject(Engine(name, graph_dtype, profile_of_engine(record, profile), open_engine), taps)


def _newest_engine(name: str, bundle: Bundle) -> EngineRecord:
    found = built_engines(bundle.directory).values()
    sound = [record for record in found if isinstance(record, EngineRecord) and record.target == name]
    if not sound:
        raise UserError(
            f"{bundle.directory} has no {name} engine. Build one: "
            f"`qv-export build {bundle.directory} --target {name}`."
        )
    return max(sound, key=lambda record: record.created)


def profile_of_engine(record: EngineRecord, asked: Profile) -> Profile:
    """What was asked, within what the engine was built for: beyond that a case is outside, not wrong."""
    limits = record.limits
    return replace(
        asked,
        max_context_tokens=limits["max_context"],  # the cache's size cannot be chosen any more
        max_patches=min(asked.max_patches, limits["max_patches"]),
        # One KV slot stays free: the one that slot reuse is compared with.
        max_batch=max(1, min(asked.max_batch, limits["max_batch"] - 1)),
        max_prompt_tokens=limits["max_prompt_tokens"],
        max_segments=limits["max_segments"],
    )


def _require_dtype(target: str, asked: str | None, possible: Sequence[str], reason: str) -> None:
    if asked is not None and asked not in possible:
        raise UserError(
            f"--target {target} cannot compute in {asked}: {reason}. Possible here: {', '.join(possible)}."
        )
