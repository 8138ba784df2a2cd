"""A bundle's TensorRT engines, loaded onto this machine's GPU."""

import mmap
import tempfile
from pathlib import Path

from engines.backends.ceilings import Ceiling
from engines.backends.tensorrt.api import Bindings, ICudaEngine
from engines.backends.tensorrt.build.matmul import build_matmul
from engines.backends.tensorrt.flavour import Flavour, load_bindings
from engines.backends.tensorrt.log import RUN_LOG, make_logger
from engines.backends.tensorrt.options import BuildOptions
from engines.backends.tensorrt.run.ceilings import copy_ceiling, matmul_ceiling
from engines.backends.tensorrt.run.cuda import CudaDevice, Device, current_sm, num_devices
from engines.backends.tensorrt.run.place import devices_of_stages
from engines.backends.tensorrt.run.session import TensorRtVision, open_decoder
from engines.runtime.vision.dealt import DealtVision
from engines.session import Engine, EngineError
from export.bundle import Bundle
from export.records.engine_record import EngineRecord


def open_sessions(bundle: Bundle, record: EngineRecord, flavour: Flavour, *, num_slots: int = 1) -> Engine:
    """Load the engines of a bundle.

    Args:
        bundle: opened.
        record: of the engines, known to fit this machine and to be whole.
        flavour: whose library loads them.
        num_slots: KV slots, each with the capacity that the engine was built for.

    Raises:
        UserError: more slots than the decoder has rows, or no library or GPU to load them with.
        EngineError: TensorRT refuses an engine all the same; its own words are quoted.
    """
    directory = bundle.engine_directory(record.key)
    trt = load_bindings(flavour)
    devices = [CudaDevice(index) for index in range(min(num_devices(), len(bundle.stages)))]
    placed = [devices[index] for index in devices_of_stages(len(bundle.stages), len(devices))]
    encoders = [
        TensorRtVision(trt, load_engine(trt, directory / "vision.engine", device), device, bundle.config)
        for device in devices
    ]
    stages = [
        load_engine(trt, directory / f"{stage.graph}.engine", device)
        for stage, device in zip(bundle.stages, placed, strict=True)
    ]
    return Engine(
        DealtVision(encoders) if len(encoders) > 1 else encoders[0],
        open_decoder(trt, stages, placed, bundle.config, num_slots),
    )


def open_vision(bundle: Bundle, record: EngineRecord, flavour: Flavour) -> TensorRtVision:
    """Load the vision engine alone. Args and errors as `open_sessions`."""
    path = bundle.engine_directory(record.key) / "vision.engine"
    trt = load_bindings(flavour)
    device = CudaDevice()
    return TensorRtVision(trt, load_engine(trt, path, device), device, bundle.config)


def measure_ceilings(flavour: Flavour, dtype: str) -> tuple[Ceiling, ...]:
    """Copy and product on this machine's GPU.

    Raises:
        UserError: no library or GPU.
        EngineError: TensorRT refuses the product.
    """
    trt, device, sm = load_bindings(flavour), CudaDevice(), current_sm()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "matmul.engine"
        build_matmul(trt, BuildOptions(flavour, (sm,)), dtype, path)
        engine = load_engine(trt, path, device)
    return copy_ceiling(device), matmul_ceiling(trt, engine, device)


def load_engine(trt: Bindings, path: Path, device: Device) -> ICudaEngine:
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
