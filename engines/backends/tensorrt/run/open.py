"""How are a bundle's TensorRT engines loaded onto this machine's GPU?"""

import logging
import mmap
from pathlib import Path

from engines.backends.known_issues import known_issues, situation_of
from engines.backends.tensorrt.api import Bindings, ICudaEngine
from engines.backends.tensorrt.flavour import load_bindings
from engines.backends.tensorrt.log import BuildLog, make_logger
from engines.backends.tensorrt.run.cuda import CudaDevice
from engines.backends.tensorrt.run.session import TensorRtDecoder, TensorRtVision
from engines.session import EngineError
from engines.store.build import known_plugins
from engines.store.cache import cached_engine, engines_directory
from engines.store.compatibility import rebuild_command, require_loadable, this_machine
from export.bundle import open_bundle
from export.config import load_config
from export.errors import UserError

_LOGGER = logging.getLogger(__name__)


def open_sessions(bundle: Path, key: str, *, num_slots: int = 1) -> tuple[TensorRtVision, TensorRtDecoder]:
    """Load both engines of a bundle.

    Args:
        bundle: directory that `qv-export export` wrote.
        key: of the engines, a directory of `engines/` in it.
        num_slots: KV slots, each with the capacity that the engine was built for.

    Raises:
        UserError: no such engines, engines that this machine cannot load, or more slots than the decoder has rows.
        EngineError: TensorRT refuses an engine all the same; its own words are quoted.
    """
    opened = open_bundle(bundle)
    record = cached_engine(opened.directory, key)
    if record is None or record.target == "onnxruntime":
        raise UserError(
            f"{bundle} has no whole TensorRT engine {key}. `qv-export inspect {bundle}` lists what it has."
        )
    require_loadable(
        record, opened.directory, opened.manifest.key, this_machine(), frozenset(known_plugins())
    )
    for issue in known_issues(situation_of(record, opened.manifest.dtype)):
        _LOGGER.warning(issue.sentence())
    config, directory = load_config(opened.directory), engines_directory(opened.directory) / key
    # A broken engine may crash the process that loads it; reading all of it once costs less than loading it.
    if changed := list(record.changed_files(directory, read=True)):
        raise UserError(
            f"The engine {directory} is damaged: {'; '.join(changed)}. Remove that directory and build it again: "
            f"{rebuild_command(record, bundle, this_machine())}"
        )
    trt, device = load_bindings(record.target), CudaDevice()
    vision, decoder = (load_engine(trt, directory / f"{graph}.engine") for graph in ("vision", "decoder"))
    return TensorRtVision(trt, vision, device, config), TensorRtDecoder(
        trt, decoder, device, config, num_slots
    )


def load_engine(trt: Bindings, path: Path) -> ICudaEngine:
    """Deserialize an engine from its mapped file.

    Raises:
        EngineError: TensorRT refuses it.
    """
    log = BuildLog()
    runtime = trt.Runtime(make_logger(trt, log))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        engine = runtime.deserialize_cuda_engine(mapped)
    if engine is None:
        said = "\n- ".join(log.errors) or "it gives no reason"
        raise EngineError(f"{trt.__name__} {trt.__version__} cannot load {path}:\n- {said}")
    if engine.streamable_weights_size:  # built with weight streaming: keep on the card what fits
        engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
    return engine
