"""A bundle's TensorRT engines, loaded onto this machine's GPU."""

import mmap
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from engines.backends.ceilings import Ceiling
from engines.backends.device_name import device_index
from engines.backends.tensorrt.api import Bindings, ICudaEngine
from engines.backends.tensorrt.build.matmul import build_matmul
from engines.backends.tensorrt.costs import engine_costs
from engines.backends.tensorrt.library import (
    TensorRtTarget,
    is_rtx,
    load_bindings,
    serves_architecture,
)
from engines.backends.tensorrt.log import RUN_LOG, make_logger
from engines.backends.tensorrt.options import BuildOptions, options_of_key
from engines.backends.tensorrt.run.ceilings import copy_ceiling, matmul_ceiling
from engines.backends.tensorrt.run.cuda import CudaDevice, StreamDevice, current_sm, num_devices, sm_of
from engines.backends.tensorrt.run.place import devices_of_stages
from engines.backends.tensorrt.run.rank import TensorRtStage
from engines.backends.tensorrt.run.room import require_room
from engines.backends.tensorrt.run.runtime_cache import with_runtime_cache
from engines.backends.tensorrt.run.session import TensorRtVision, open_decoder_engine
from engines.runtime.vision.dealt import DealtVision
from engines.session import Engine, EngineError, RankSessions
from engines.sizing.costs import ModelCosts
from engines.sizing.limits import Limits
from engines.sizing.stages import staged_costs
from export.bundle import Bundle
from export.contract import GraphName
from export.errors import UserError
from export.records.engine_record import EngineRecord


def open_engine_sessions(
    bundle: Bundle,
    record: EngineRecord,
    target: TensorRtTarget,
    *,
    num_slots: int = 1,
    device: str | None = None,
) -> Engine:
    """Load the engines of a bundle.

    Args:
        bundle: opened.
        record: of the engines, known to fit this machine and to be whole.
        target: whose library loads them.
        num_slots: KV slots, each with the capacity that the engine was built for.
        device: the GPU, or the first of those that stages go to, such as `cuda:1`; None: the first of all.

    Raises:
        UserError: more slots than the decoder has rows, no library or no such GPU to load them with, a GPU that they
            were not built for, or one without the memory that they take.
        EngineError: TensorRT refuses an engine all the same; its own words are quoted.
    """
    _require_undivided(bundle)
    directory = bundle.engine_directory(record.key)
    trt = load_bindings(target)
    devices = [CudaDevice(index) for index in gpus_from(device, num_devices(), len(bundle.stages))]
    placed = [devices[index] for index in devices_of_stages(len(bundle.stages), len(devices))]
    for gpu in devices:
        require_architecture(record, gpu.index, sm_of(gpu.index))
    on_gpu = {
        gpu: ["vision", *(s.graph for s, on in zip(bundle.stages, placed, strict=True) if on is gpu)]
        for gpu in devices
    }
    _require_room(bundle, record, target, on_gpu, num_slots)
    encoders = [
        TensorRtVision(trt, _load(trt, directory, "vision", device), device, bundle.config)
        for device in devices
    ]
    stages = [
        _load(trt, directory, stage.graph, device)
        for stage, device in zip(bundle.stages, placed, strict=True)
    ]
    return Engine(
        DealtVision(encoders) if len(encoders) > 1 else encoders[0],
        open_decoder_engine(trt, stages, placed, bundle.config, num_slots),
    )


def open_rank(
    bundle: Bundle,
    record: EngineRecord,
    target: TensorRtTarget,
    stage: int | None,
    *,
    num_slots: int = 1,
    device: str | None = None,
) -> RankSessions:
    """Load what one rank holds, onto one GPU.

    Args:
        bundle, record, target, num_slots: as `open_engine_sessions`.
        stage: which of the decoder's; None: none.
        device: the rank's GPU.

    Raises:
        UserError, EngineError: as `open_engine_sessions`.
    """
    _require_undivided(bundle)
    trt, directory = load_bindings(target), bundle.engine_directory(record.key)
    [index] = gpus_from(device, num_devices(), 1)
    gpu, stages = CudaDevice(index), [] if stage is None else [bundle.stages[stage]]
    require_architecture(record, index, sm_of(index))
    _require_room(bundle, record, target, {gpu: ["vision", *(one.graph for one in stages)]}, num_slots)
    vision = TensorRtVision(trt, _load(trt, directory, "vision", gpu), gpu, bundle.config)
    if stage is None:
        return RankSessions(vision, None)
    engine = _load(trt, directory, bundle.stages[stage].graph, gpu)
    limits = Limits(**record.limits)
    return RankSessions(
        vision, TensorRtStage(trt, engine, gpu, bundle.config, limits, num_slots, len(bundle.stages))
    )


def _require_undivided(bundle: Bundle) -> None:
    num_ranks = bundle.manifest.tensor_parallel
    if num_ranks > 1:
        raise UserError(
            f"{bundle.directory}: its decoder is divided among {num_ranks} ranks, whose engines are built, but not run "
            "yet. Export the checkpoint with --pipeline-stages, or take target onnxruntime."
        )


def _require_room(
    bundle: Bundle,
    record: EngineRecord,
    target: TensorRtTarget,
    placed: Mapping[CudaDevice, Sequence[GraphName]],
    num_slots: int,
) -> None:
    limits = Limits(**record.limits)
    require_room(
        plan_of(bundle, limits),
        {gpu.index: graphs for gpu, graphs in placed.items()},
        {gpu.index: gpu.free_bytes() for gpu in placed},
        slot_tokens=num_slots * limits.max_context,
        are_weights_streamed=options_of_key(target, record.sms, record.inputs).weight_streaming,
    )


def plan_of(bundle: Bundle, limits: Limits) -> ModelCosts:
    """What `build --plan` says of engines of these limits."""
    dtype = bundle.manifest.dtype
    costs_of = staged_costs(
        lambda config, some: engine_costs(config, dtype, some), bundle.config, bundle.rank_stages
    )
    return costs_of(limits)


def gpus_from(device: str | None, num_here: int, num_stages: int) -> range:
    """The numbers of the GPUs that stages go to: neighbours from the named one on, as many as can be used.

    Raises:
        UserError: it is no GPU's name, or there are not so many.
    """
    first = device_index(device)
    if first >= num_here:
        raise UserError(
            f"--device {device or 'cuda'}: CUDA shows {num_here} GPUs to this process, counted from cuda:0.",
            "Name one of those; CUDA_VISIBLE_DEVICES says which they are.",
        )
    return range(first, min(num_here, first + num_stages))


def require_architecture(record: EngineRecord, index: int, sm: int) -> None:
    """Raises:
    UserError: the engine has no code for a GPU.
    """
    if not serves_architecture(record, sm):
        built_for = ", ".join(f"SM{one}" for one in record.sms)
        raise UserError(
            f"cuda:{index} is SM{sm}, and the engine {record.key} was built for {built_for}.",
            "Name another GPU with --device, or build an engine for this one.",
        )


def open_vision(bundle: Bundle, record: EngineRecord, target: TensorRtTarget) -> TensorRtVision:
    """Load the vision engine alone. Args and errors as `open_engine_sessions`."""
    directory = bundle.engine_directory(record.key)
    trt = load_bindings(target)
    device = CudaDevice()
    return TensorRtVision(trt, _load(trt, directory, "vision", device), device, bundle.config)


def measure_gpu_ceilings(target: TensorRtTarget, dtype: str) -> tuple[Ceiling, ...]:
    """Copy and product on this machine's GPU.

    Raises:
        UserError: no library or GPU.
        EngineError: TensorRT refuses the product.
    """
    trt, device, sm = load_bindings(target), CudaDevice(), current_sm()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "matmul.engine"
        build_matmul(trt, BuildOptions(target, (sm,)), dtype, path)
        engine = load_engine(trt, path, device)
    return copy_ceiling(device), matmul_ceiling(trt, engine, device)


def _load(trt: Bindings, directory: Path, graph: GraphName, device: CudaDevice) -> ICudaEngine:
    """An engine of a bundle, with the kernels that were compiled for it on this machine before."""
    engine = load_engine(trt, directory / f"{graph}.engine", device)
    if not is_rtx(trt):
        return engine
    return with_runtime_cache(trt, engine, device, directory.name, graph, sm_of(device.index))


def load_engine(trt: Bindings, path: Path, device: StreamDevice) -> ICudaEngine:
    """Deserialize an engine from its mapped file onto a GPU.

    Raises:
        EngineError: TensorRT refuses it.
    """
    device.select()
    runtime = trt.Runtime(make_logger(trt, RUN_LOG))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        engine = runtime.deserialize_cuda_engine(mapped)
    if engine is None:
        raise EngineError(f"{trt.__name__} {trt.__version__} cannot load {path}:\n- {RUN_LOG.take()}")
    if engine.streamable_weights_size:  # built with weight streaming: keep on the card what fits
        engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
    return engine
