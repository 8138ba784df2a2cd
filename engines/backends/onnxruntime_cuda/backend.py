"""ONNX Runtime on an NVIDIA GPU: opens a bundle's graphs as they are, in their own dtype."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engines.backends.base import GraphProgress, Options, one_process_alone
from engines.backends.device_name import device_index
from engines.backends.facts import EngineFacts
from engines.backends.onnxruntime.backend import OnnxRuntimeBackend
from engines.gpus import GpuFacts, gpu_facts
from engines.machine import Machine
from engines.packages import has_module, installed_version
from engines.sizing.costs import ModelCosts, model_costs
from engines.sizing.limits import Limits
from export.bundle import Bundle
from export.checkpoint.config import ModelConfig
from export.contract import GraphName
from export.dtypes import num_bytes
from export.errors import UserError
from export.install import package_command
from export.models.configuration import KvCachePrecision
from export.records.engine_record import EngineRecord

if TYPE_CHECKING:
    from engines.parallel.communicator import Communicator
    from engines.session import Engine, ProbeSession, RankSessions, VisionSession

_DISTRIBUTION = "onnxruntime-gpu"
_PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
_BASE_BYTES = 800_000_000  # of a CUDA context with cuBLAS and cuDNN, beside the weights
_LEAST_ARCHITECTURE: Mapping[str, int] = {"float32": 75, "float16": 75, "bfloat16": 80}
"""By dtype; ONNX Runtime 1.31's wheel has code for 75, 80, 86, 89, 90 and 120."""


class OnnxRuntimeCudaBackend(OnnxRuntimeBackend):
    """See `Backend`. Its records are those of ONNX Runtime on the CPU: limits, and no engine files."""

    name = "onnxruntime-cuda"
    distributions = (_DISTRIBUTION,)
    sources = (
        "engines/backends/onnxruntime",
        "engines/backends/onnxruntime_cuda",
        "plugins",
    )
    device: Literal["cpu", "gpu"] = "gpu"
    dtype_reason = "it computes in the graphs' dtype; export the bundle anew"

    def version(self) -> str | None:
        """See `Backend`."""
        return installed_version(_DISTRIBUTION) if has_module("onnxruntime") else None

    def missing(self) -> str | None:
        """See `Backend`. What its library cannot load is found out by loading it."""
        if self.version() is None:
            return (
                f"Target {self.name} needs {_DISTRIBUTION}, which is not installed. It takes the place of onnxruntime: "
                f"uninstall that, then {package_command('onnxruntime-gpu[cuda,cudnn]')}"
            )
        if problem := provider_problem():
            return (
                f"Target {self.name}: ONNX Runtime's CUDA provider does not load: {problem}. "
                f"It needs CUDA 13 and cuDNN 9: {package_command('onnxruntime-gpu[cuda,cudnn]')}"
            )
        return None

    def serves(self, sm: int) -> bool:
        """See `Backend`."""
        return sm >= _LEAST_ARCHITECTURE["float16"]

    def advice(self, gpus: Sequence[GpuFacts]) -> str:
        """See `Backend`."""
        if missing := self.missing():
            return missing
        if not any(self.serves(gpu.sm) for gpu in gpus):
            return "needs an NVIDIA GPU, SM75 and up, and SM80 for bfloat16; `nvidia-smi` lists none"
        return ""

    def kv_cache_problem(self, precision: KvCachePrecision) -> str | None:
        """See `Backend`."""
        del precision
        return (
            "its attention takes a cache in 8 bits only under scales that are known before anything is cached"
        )

    def compute_dtypes(self, graph_dtype: str) -> tuple[str, ...]:
        """See `Backend`."""
        return (graph_dtype,)

    def costs(self, config: ModelConfig, graph_dtype: str, limits: Limits) -> ModelCosts:
        """See `Backend`. Nothing is written; on the device are the weights, the cache and what a call computes in."""
        return model_costs(
            config,
            limits,
            num_bytes(graph_dtype, 1),
            lambda _graph, weights_bytes: (0, weights_bytes + _BASE_BYTES),
        )

    def build(
        self,
        bundle: Bundle,
        graph: GraphName,
        limits: Limits,
        architectures: tuple[int, ...],
        options: Options,
        output: Path,
        progress: GraphProgress,
        *,
        outputs: tuple[str, ...] = (),
    ) -> EngineFacts:
        """See `Backend`. On any machine: what the CPU shows of the graph, and that each operator has a CUDA kernel."""
        from engines.backends.onnxruntime_cuda.graph import load_graph  # noqa: PLC0415 - ONNX Runtime

        load_graph(bundle.graph(graph), bundle.config, bundle.manifest.dtype)
        facts = super().build(
            bundle, graph, limits, architectures, options, output, progress, outputs=outputs
        )
        return replace(facts, target=self.name)

    def load_problems(self, record: EngineRecord, machine: Machine) -> list[str]:
        """See `Backend`."""
        del record
        problems = [missing] if (missing := self.missing()) else []
        if not machine.gpus:
            problems.append("it needs an NVIDIA GPU; `nvidia-smi` lists none")
        return problems

    def open(
        self,
        bundle: Bundle,
        record: EngineRecord | None,
        *,
        num_slots: int,
        capacity: int,
        num_threads: int | None = None,
        device: str | None = None,
    ) -> Engine:
        """See `Backend`."""
        del record
        from engines.backends.onnxruntime_cuda.device import Device  # noqa: PLC0415 - ONNX Runtime
        from engines.backends.onnxruntime_cuda.session import open_sessions  # noqa: PLC0415 - ONNX Runtime

        index = device_index(device)
        require_gpu(bundle.manifest.dtype, index, gpu_facts())
        place = Device("cuda", index)
        return open_sessions(bundle, place, num_slots=num_slots, capacity=capacity, num_threads=num_threads)

    def open_rank(
        self,
        bundle: Bundle,
        record: EngineRecord | None,
        stage: int | None,
        *,
        num_slots: int,
        capacity: int,
        num_threads: int | None = None,
        device: str | None = None,
        communicator: Communicator | None = None,
    ) -> RankSessions:
        """See `Backend`."""
        del bundle, record, stage, num_slots, capacity, num_threads, device, communicator
        raise one_process_alone(self)

    def open_vision(
        self, bundle: Bundle, record: EngineRecord | None, *, num_threads: int | None = None
    ) -> VisionSession:
        """See `Backend`."""
        del record
        from engines.backends.onnxruntime_cuda.device import Device, Mover  # noqa: PLC0415 - ONNX Runtime
        from engines.backends.onnxruntime_cuda.open_graph import open_graph  # noqa: PLC0415 - ONNX Runtime
        from engines.backends.onnxruntime_cuda.session import DeviceVision  # noqa: PLC0415 - ONNX Runtime

        place = Device("cuda")
        return DeviceVision(open_graph(bundle, "vision", place, num_threads), place, Mover(place))

    def probe(
        self, bundle: Bundle, record: EngineRecord | None, *, device: str | None = None
    ) -> ProbeSession | None:
        """See `Backend`."""
        del record
        from engines.backends.onnxruntime_cuda.device import Device  # noqa: PLC0415 - ONNX Runtime
        from engines.backends.onnxruntime_cuda.probes import DeviceProbes  # noqa: PLC0415 - ONNX Runtime

        return DeviceProbes(bundle, Device("cuda", device_index(device)))


def require_gpu(dtype: str, index: int, gpus: Sequence[GpuFacts]) -> None:
    """Refuse a GPU that is not there, or that does not compute in a dtype, before anything is loaded.

    Args:
        dtype: of the bundle's graphs.
        index: which GPU.
        gpus: of this machine; none where `nvidia-smi` is not there, so that nothing is known.

    Raises:
        UserError: what is there, or what the dtype needs, and what to do.
    """
    if gpus and index >= len(gpus):
        raise UserError(
            f"--device cuda:{index}: `nvidia-smi` lists {len(gpus)} here, from cuda:0 to cuda:{len(gpus) - 1}."
        )
    least = _LEAST_ARCHITECTURE[dtype]
    if gpus and gpus[index].sm < least:
        raise UserError(
            f"{gpus[index].name} is SM{gpus[index].sm}, which does not compute in {dtype}: that takes SM{least} and "
            "up. Export the checkpoint with --dtype float16 or float32."
        )


def provider_problem() -> str | None:
    """What the CUDA provider's library lacks, in the loader's words, by loading it; None: nothing."""
    import onnxruntime  # noqa: PLC0415 - heavy

    library = Path(onnxruntime.__file__).parents[1] / _PROVIDER
    if not library.is_file():
        return (
            "the module onnxruntime that is imported has none: onnxruntime and onnxruntime-gpu share that module, and "
            "the one installed last is there"
        )
    try:
        onnxruntime.preload_dlls()
        # The provider finds its bridge to ONNX Runtime's core in a library that must be loaded before.
        ctypes.CDLL(str(library.with_name("libonnxruntime_providers_shared.so")), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return None
